use std::time::Duration;

use hickory_server::proto::rr::RecordType;
use octollm_http::resolve::{Dns, Endpoint, Resolver};
use tokio::time::timeout;

use super::dns_server::{DnsServer, Question, Trouble};

const LEAST: Duration = Duration::from_millis(20);

/// The addresses of `judge.test.`, asked for at short intervals.
fn judge(server: &DnsServer) -> Dns {
    short(server, Dns::new("judge", "http://judge.test:8103/judge"))
}

fn short(server: &DnsServer, dns: Dns) -> Dns {
    dns.server(server.address)
        .min_refresh(LEAST)
        .max_refresh(Duration::from_millis(100))
        .lookup_timeout(Duration::from_millis(300))
}

async fn next(resolver: &mut impl Resolver) -> Result<Vec<Endpoint>, String> {
    let answer = timeout(Duration::from_secs(10), resolver.next()).await.expect("no answer within 10 s");
    answer.map_err(|error| error.to_string())
}

/// The next set, as the addresses of its endpoints.
async fn addresses(resolver: &mut impl Resolver) -> Vec<String> {
    let endpoints = next(resolver).await.unwrap();
    endpoints.into_iter().map(|endpoint| endpoint.address.unwrap().to_string()).collect()
}

/// Whether nothing changes while the server answers some more questions.
async fn is_silent(resolver: &mut impl Resolver, server: &DnsServer) -> bool {
    let before = server.questions().len();
    let answered = async {
        while server.questions().len() < before + 8 {
            tokio::time::sleep(LEAST).await;
        }
    };
    tokio::select! {
        _ = resolver.next() => false,
        () = answered => true,
    }
}

/// The times between questions of one type.
fn gaps(questions: &[Question], kind: RecordType) -> Vec<Duration> {
    let times: Vec<_> =
        questions.iter().filter(|question| question.kind == kind).map(|question| question.at).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test]
async fn each_address_is_an_endpoint_and_changes_are_followed() {
    let server = DnsServer::start().await;
    server.set("judge.test.", 0, &["127.0.0.2", "127.0.0.1"]);
    let mut resolver = judge(&server).build().unwrap();
    let expected = |address: [u8; 4]| {
        Endpoint::new("judge", "http://judge.test:8103/judge").address((address, 8103).into())
    };
    assert_eq!(next(&mut resolver).await.unwrap(), [expected([127, 0, 0, 1]), expected([127, 0, 0, 2])]);
    assert!(is_silent(&mut resolver, &server).await);

    // The order in which a server lists them is no change.
    server.set("judge.test.", 0, &["127.0.0.1", "127.0.0.2"]);
    assert!(is_silent(&mut resolver, &server).await);
    server.set("judge.test.", 0, &["127.0.0.3"]);
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.3:8103"]);
}

#[tokio::test]
async fn a_dot_at_the_end_of_a_name_is_not_sent_to_the_arm() {
    let server = DnsServer::start().await;
    server.set("judge.test.", 0, &["127.0.0.1"]);
    for (url, expected) in [
        ("http://judge.test.:8103/", "http://judge.test:8103"),
        ("http://judge.test.", "http://judge.test"),
        ("http://JUDGE.test/a/", "http://JUDGE.test/a"),
    ] {
        let mut resolver = short(&server, Dns::new("judge", url)).build().unwrap();
        assert_eq!(next(&mut resolver).await.unwrap()[0].url, expected);
    }
}

#[tokio::test]
async fn both_families_are_found_and_one_that_fails_stays() {
    let server = DnsServer::start().await;
    server.set("judge.test.", 0, &["127.0.0.1", "::1"]);
    let mut resolver = judge(&server).build().unwrap();
    let both = ["127.0.0.1:8103", "[::1]:8103"];
    assert_eq!(addresses(&mut resolver).await, both);

    server.trouble(RecordType::AAAA, Some(Trouble::ServFail));
    server.set("judge.test.", 0, &["127.0.0.2"]);
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.2:8103", "[::1]:8103"]);
    server.trouble(RecordType::AAAA, None);
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.2:8103"]);
    server.set("judge.test.", 0, &["::1"]);
    assert_eq!(addresses(&mut resolver).await, ["[::1]:8103"]);
}

#[tokio::test]
async fn the_time_to_live_decides_when_a_name_is_looked_up_again() {
    let server = DnsServer::start().await;
    server.set("judge.test.", 1, &["127.0.0.1"]);
    let mut resolver = judge(&server).max_refresh(Duration::from_secs(60)).build().unwrap();
    addresses(&mut resolver).await;
    server.set("judge.test.", 0, &["127.0.0.2"]);
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.2:8103"]);
    let gaps = gaps(&server.questions(), RecordType::A);
    assert!(gaps[0] >= Duration::from_millis(900), "{gaps:?}");
    assert!(is_silent(&mut resolver, &server).await, "a time to live of 0 is the shortest time");
}

#[tokio::test]
async fn neither_a_long_nor_a_short_time_to_live_exceeds_the_limits() {
    let server = DnsServer::start().await;
    server.set("judge.test.", 86_400, &["127.0.0.1"]);
    let mut resolver = judge(&server).build().unwrap();
    addresses(&mut resolver).await;
    assert!(is_silent(&mut resolver, &server).await);
    server.set("judge.test.", 0, &["127.0.0.2"]);
    addresses(&mut resolver).await;
    let long = server.questions().len();
    assert!(is_silent(&mut resolver, &server).await);
    let questions = server.questions();
    // On a busy machine one question arrives late, and the next one in time.
    assert!(gaps(&questions[..long], RecordType::A).iter().all(|gap| *gap >= 3 * LEAST));
    assert!(gaps(&questions[long..], RecordType::A).iter().all(|gap| *gap >= LEAST / 2));
}

#[tokio::test]
async fn a_name_that_does_not_exist_or_has_no_addresses_is_an_empty_set() {
    let server = DnsServer::start().await;
    let mut resolver = judge(&server).build().unwrap();
    assert_eq!(next(&mut resolver).await.unwrap(), []);
    server.set("judge.test.", 0, &["127.0.0.1"]);
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.1:8103"]);
    server.set_srv("judge.test.", &[(0, 0, 1, "x.test.")]);
    server.set("judge.test.", 0, &[]);
    assert_eq!(next(&mut resolver).await.unwrap(), [], "it has records of another type");
    // Never anybody's address.
    server.set("judge.test.", 0, &["0.0.0.0", "::"]);
    assert!(is_silent(&mut resolver, &server).await);
}

#[tokio::test]
async fn fault_41_a_server_that_fails_is_an_error_and_its_next_answer_is_one_again() {
    let server = DnsServer::start().await;
    server.set("judge.test.", 0, &["127.0.0.1"]);
    let mut resolver = judge(&server).build().unwrap();
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.1:8103"]);
    for trouble in [Trouble::ServFail, Trouble::Silence] {
        server.trouble(RecordType::A, Some(trouble));
        server.trouble(RecordType::AAAA, Some(trouble));
        let error = next(&mut resolver).await.unwrap_err();
        assert_eq!(error, "the DNS name judge.test cannot be resolved");
        next(&mut resolver).await.unwrap_err();
        server.trouble(RecordType::A, None);
        server.trouble(RecordType::AAAA, None);
        let again = loop {
            if let Ok(endpoints) = next(&mut resolver).await {
                break endpoints;
            }
        };
        assert_eq!(again.len(), 1, "the same set, so that the trouble is known to have ended");
    }
}

#[tokio::test]
async fn whether_one_family_exists_is_not_guessed_while_the_other_fails() {
    let server = DnsServer::start().await;
    server.set_srv("judge.test.", &[(0, 0, 1, "x.test.")]);
    server.trouble(RecordType::A, Some(Trouble::ServFail));
    let mut resolver = judge(&server).build().unwrap();
    next(&mut resolver).await.unwrap_err();
    server.trouble(RecordType::A, None);
    server.trouble(RecordType::AAAA, Some(Trouble::ServFail));
    server.set("judge.test.", 0, &["127.0.0.1"]);
    let found = loop {
        if let Ok(endpoints) = next(&mut resolver).await {
            break endpoints;
        }
    };
    assert_eq!(found.len(), 1);
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_again_over_tcp() {
    let server = DnsServer::start().await;
    let all: Vec<_> = (1..=200).map(|last| format!("127.0.1.{last}")).collect();
    server.set("judge.test.", 60, &all.iter().map(String::as_str).collect::<Vec<_>>());
    let mut resolver = judge(&server).build().unwrap();
    assert_eq!(addresses(&mut resolver).await.len(), 200);
    let of_a: Vec<_> =
        server.questions().into_iter().filter(|question| question.kind == RecordType::A).collect();
    assert!(!of_a[0].is_tcp && of_a[1].is_tcp, "{of_a:?}");
    assert!(of_a.iter().all(|question| question.name == "judge.test."), "{of_a:?}");
}

#[tokio::test]
async fn a_server_that_restarts_is_asked_again() {
    let server = DnsServer::start().await;
    server.set("judge.test.", 0, &["127.0.0.1"]);
    let mut resolver = judge(&server).build().unwrap();
    addresses(&mut resolver).await;
    let stopped = server.stop().await;
    next(&mut resolver).await.unwrap_err();
    let server = stopped.start().await;
    server.set("judge.test.", 0, &["127.0.0.2"]);
    let found = loop {
        if let Ok(endpoints) = next(&mut resolver).await {
            break endpoints;
        }
    };
    assert_eq!(found[0].address, Some(([127, 0, 0, 2], 8103).into()));
}

#[tokio::test]
async fn of_several_servers_one_that_answers_is_enough() {
    let (dead, server) = (DnsServer::start().await, DnsServer::start().await);
    server.set("judge.test.", 0, &["127.0.0.1"]);
    let dns = Dns::new("judge", "http://judge.test").server(dead.address);
    let mut resolver = short(&server, dns).lookup_timeout(Duration::from_secs(2)).build().unwrap();
    dead.trouble(RecordType::A, Some(Trouble::Silence));
    dead.trouble(RecordType::AAAA, Some(Trouble::Silence));
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.1:80"]);
}

#[tokio::test]
async fn an_alias_is_followed_and_lives_as_long_as_the_shortest_record() {
    let server = DnsServer::start().await;
    server.set("pod.test.", 86_400, &["127.0.0.1"]);
    server.set_alias("judge.test.", 0, "pod.test.");
    let mut resolver = judge(&server).max_refresh(Duration::from_secs(60)).build().unwrap();
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.1:8103"]);
    server.set("pod.test.", 86_400, &["127.0.0.2"]);
    server.set_alias("judge.test.", 0, "pod.test.");
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.2:8103"]);
}

fn coder(server: &DnsServer) -> Dns {
    short(server, Dns::srv("coder", "http://_http._tcp.coder.test/base"))
}

const SERVICE: &str = "_http._tcp.coder.test.";

#[tokio::test]
async fn targets_of_srv_records_have_ports_weights_and_the_name_of_the_service() {
    let server = DnsServer::start().await;
    server.set("a.coder.test.", 0, &["127.0.0.1"]);
    server.set("b.coder.test.", 0, &["127.0.0.2"]);
    server.set("spare.test.", 0, &["127.0.0.9"]);
    server.set_srv(
        SERVICE,
        &[(10, 3, 8102, "b.coder.test."), (10, 1, 8101, "a.coder.test."), (20, 1, 80, "spare.test.")],
    );
    let mut resolver = coder(&server).build().unwrap();
    let endpoint = |last, port: u16, weight| {
        let url = format!("http://coder.test:{port}/base");
        Endpoint::new("coder", url).address(([127, 0, 0, last], port).into()).weight(weight)
    };
    assert_eq!(next(&mut resolver).await.unwrap(), [endpoint(1, 8101, 1), endpoint(2, 8102, 3)]);

    // The next priority serves where the first has no addresses.
    server.set("a.coder.test.", 0, &[]);
    server.set("b.coder.test.", 0, &[]);
    let spare = loop {
        let endpoints = next(&mut resolver).await.unwrap();
        if endpoints.len() == 1 && endpoints[0].weight == 1 && endpoints[0] != endpoint(1, 8101, 1) {
            break endpoints;
        }
    };
    assert_eq!(spare, [endpoint(9, 80, 1)]);
    server.set_srv(SERVICE, &[(0, 0, 0, ".")]);
    assert_eq!(next(&mut resolver).await.unwrap(), [], "there is no such service");
}

#[tokio::test]
async fn a_target_that_cannot_be_looked_up_has_its_last_addresses() {
    let server = DnsServer::start().await;
    server.set("a.coder.test.", 0, &["127.0.0.1"]);
    server.set_srv(SERVICE, &[(0, 1, 8101, "a.coder.test.")]);
    let mut resolver = coder(&server).build().unwrap();
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.1:8101"]);
    server.trouble(RecordType::A, Some(Trouble::ServFail));
    server.trouble(RecordType::AAAA, Some(Trouble::ServFail));
    server.set_srv(SERVICE, &[(0, 1, 8102, "a.coder.test.")]);
    assert_eq!(addresses(&mut resolver).await, ["127.0.0.1:8102"]);
    server.set_srv(SERVICE, &[(0, 1, 8103, "unknown.test.")]);
    next(&mut resolver).await.unwrap_err();
}

#[tokio::test]
async fn questions_that_are_dropped_lose_no_change() {
    let server = DnsServer::start().await;
    let mut resolver = judge(&server).build().unwrap();
    for round in 1..=20_u8 {
        let address = format!("127.0.0.{round}");
        server.set("judge.test.", 0, &[&address]);
        let found = loop {
            // Some end before the next question, some while it is asked, and some after it.
            if let Ok(found) = timeout(Duration::from_millis(u64::from(5 + round)), resolver.next()).await {
                break found.unwrap();
            }
        };
        assert_eq!(found[0].address.unwrap().ip().to_string(), address);
    }
}

#[test]
fn a_resolver_survives_the_runtime_that_asked_it() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let servers = runtime();
    let server = servers.block_on(DnsServer::start());
    server.set("judge.test.", 0, &["127.0.0.1"]);
    let mut resolver = judge(&server).build().unwrap();
    assert_eq!(runtime().block_on(addresses(&mut resolver)), ["127.0.0.1:8103"]);
    server.set("judge.test.", 0, &["127.0.0.2"]);
    assert_eq!(runtime().block_on(addresses(&mut resolver)), ["127.0.0.2:8103"]);
}

#[test]
fn limits_out_of_range_are_refused() {
    let dns = || Dns::new("judge", "http://judge");
    for (setting, dns) in [
        ("min_refresh", dns().min_refresh(Duration::ZERO)),
        ("min_refresh", dns().min_refresh(Duration::from_secs(31))),
        ("max_refresh", dns().max_refresh(Duration::MAX)),
        ("lookup_timeout", dns().lookup_timeout(Duration::ZERO)),
    ] {
        assert_eq!(dns.build().err().unwrap().setting(), setting);
    }
}
