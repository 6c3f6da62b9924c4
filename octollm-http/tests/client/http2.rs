//! The client over HTTP/2, against servers that break and servers that do not.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use octollm_core::{
    arm::arm_fn,
    error::{CallError, ErrorKind},
};
use octollm_http::{
    Server,
    client::{Arms, ArmsBuilder, Protocol},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    frames::{FramePeer, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, REFUSED_STREAM, VALID, http2},
    peer::{Answer, Check, Peer, Verdict, arms, check, network, short, silent, until, unused_host, usual},
};

fn judge(url: &str, builder: ArmsBuilder) -> Arms {
    http2(builder).retries(0).endpoint_serving::<Check>("judge", url).build().unwrap()
}

fn phase(error: &CallError) -> Option<&str> {
    error.failure().details.as_ref()?.get("phase")?.as_str()
}

/// A server of this library on the network in memory, whose work takes this long. Returns its URL.
fn server(work: Duration) -> String {
    let host = unused_host();
    let arm = arm_fn(move |_: Check, _| async move {
        sleep(work).await;
        Ok(Verdict { is_valid: true })
    });
    let acceptor = network().listen(&host).unwrap();
    tokio::spawn(Server::new("judge").arm(arm).open_to_all().listen(acceptor).unwrap().run());
    format!("http://{host}")
}

#[tokio::test(start_paused = true)]
async fn calls_share_one_connection() {
    let url = server(Duration::from_millis(10));
    let arms = http2(usual()).endpoint("judge", &url).build().unwrap();
    let began = Instant::now();
    arms.context().call_all((0..100).map(|_| check())).at_once(100).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(25), "{:?}", began.elapsed());
    // Beyond every window.
    let long = Check { code: "x".repeat(1 << 20) };
    arms.call(long).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fault_01_a_server_that_never_answers_over_http2_is_given_up_after_the_connect_limit() {
    let (url, _listener) = silent();
    let arms = judge(&url, usual());
    let began = Instant::now();
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    assert_eq!((error.kind(), phase(&error)), (ErrorKind::Unreachable, Some("connect")));
    assert!(error.retryable() && !error.may_have_executed());
    // Those who wait for the same connection fail with it.
    let failed = arms.context().call_all((0..50).map(|_| check())).at_once(50).each().await;
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    for error in failed.into_iter().map(Result::unwrap_err) {
        assert!(matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Timeout), "{error}");
        assert!(!error.may_have_executed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_http1_only_is_sent_no_request() {
    let peer = Peer::start(|_| async { Answer::verdict() }).await;
    let error = judge(&peer.url, arms()).call(check()).await.unwrap_err();
    assert_eq!((error.kind(), phase(&error)), (ErrorKind::Unreachable, Some("connect")));
    assert!(!error.may_have_executed());
}

/// Each of 100 calls is made right after the server has closed the connection of the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_05_an_http2_connection_that_is_closed_in_the_instant_of_the_call_costs_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (close, closing) = mpsc::channel::<()>();
    let (closed, has_closed) = mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        for served in 0.. {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(b"\0\0\0\x04\0\0\0\0\0").unwrap();
            // The answer follows the end of the first request.
            let mut read = Vec::<u8>::new();
            while !read.windows(9).any(|head| head[3..9] == [0, 1, 0, 0, 0, 1]) {
                let mut bytes = [0; 4096];
                let count = socket.read(&mut bytes).unwrap();
                assert!(count > 0);
                read.extend(&bytes[..count]);
            }
            socket.write_all(b"\0\0\x13\x01\x04\0\0\0\x01\x88\x5f\x10application/json").unwrap();
            socket.write_all(&[b"\0\0\x11\0\x01\0\0\0\x01", VALID].concat()).unwrap();
            if closing.recv().is_err() {
                return served;
            }
            drop(socket);
            closed.send(()).unwrap();
        }
        0
    });
    let arms = judge(&url, Arms::builder());
    for round in 0..100 {
        arms.call(check()).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        close.send(()).unwrap();
        has_closed.recv().unwrap();
    }
    arms.call(check()).await.unwrap();
    drop(close);
    assert_eq!(server.join().unwrap(), 100, "each call was made once");
}

#[tokio::test(start_paused = true)]
async fn fault_06_over_http2_a_loss_after_the_request_is_an_error_for_a_call_only() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    // Each connection answers once and dies by the next request.
    let peer = FramePeer::start(move |_, mut link| {
        let seen = counted.clone();
        async move {
            link.greet(&[]).await?;
            if let Some((stream, _)) = link.request().await? {
                seen.fetch_add(1, Ordering::SeqCst);
                link.verdict(stream).await?;
            }
            link.request().await?;
            seen.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let arms = judge(&peer.url, usual());
    arms.call(check()).await.unwrap();
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    assert!(error.may_have_executed() && error.retryable());
    assert_eq!((seen.load(Ordering::SeqCst), peer.accepted()), (2, 1));
    // A card is asked for with GET: over the second connection, and once more over a third.
    let asking = http2(usual()).endpoint("judge", &peer.url).build().unwrap();
    asking.cards().await;
    sleep(Duration::from_millis(1050)).await;
    asking.cards().await;
    assert_eq!((seen.load(Ordering::SeqCst), peer.accepted()), (5, 3));
}

#[tokio::test(start_paused = true)]
async fn fault_07_an_answer_over_http2_that_is_cut_off_is_never_a_short_answer() {
    for is_reset in [true, false] {
        let peer = FramePeer::start(move |_, mut link| async move {
            link.greet(&[]).await?;
            while let Some((stream, _)) = link.request().await? {
                link.head(stream).await?;
                link.data(stream, VALID, false).await?;
                if !is_reset {
                    return Ok(());
                }
                link.reset(stream, 2).await?;
            }
            Ok(())
        });
        let error = judge(&peer.url, usual()).call(check()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{is_reset}");
        assert!(error.may_have_executed());
    }
}

#[tokio::test(start_paused = true)]
async fn fault_08_silence_of_one_stream_is_given_up_and_the_server_sees_it() {
    let peer = FramePeer::start(|_, mut link| async move {
        link.greet(&[]).await?;
        let (silent, _) = link.request().await?.unwrap();
        let (half, _) = link.request().await?.unwrap();
        link.head(half).await?;
        while let Some((stream, _)) = link.request().await? {
            // Both were reset before another one came.
            assert!(link.reset.contains(&silent) && link.reset.contains(&half), "{:?}", link.reset);
            link.verdict(stream).await?;
        }
        Ok(())
    });
    let arms = judge(&peer.url, usual().read_idle(Duration::from_secs(20)));
    let began = Instant::now();
    let (first, second) = tokio::join!(arms.call(check()), arms.call(check()));
    for (answer, expected) in [(first, "read_head"), (second, "read_body")] {
        let error = answer.unwrap_err();
        assert_eq!((error.kind(), phase(&error)), (ErrorKind::Timeout, Some(expected)));
        assert!(error.may_have_executed());
    }
    assert_eq!(began.elapsed(), Duration::from_secs(20));
    arms.call(check()).await.unwrap();
    assert_eq!(peer.accepted(), 1, "the connection is none the worse for it");
}

#[tokio::test(start_paused = true)]
async fn fault_08_a_connection_over_which_nothing_comes_at_all_is_not_used_again() {
    let peer = FramePeer::start(|number, mut link| async move {
        link.greet(&[]).await?;
        if number == 0 {
            let (stream, _) = link.request().await?.unwrap();
            link.verdict(stream).await?;
            while link.frame().await?.is_some() {}
            return Ok(());
        }
        link.verdicts().await
    });
    let arms = judge(&peer.url, usual().read_idle(Duration::from_secs(5)));
    arms.call(check()).await.unwrap();
    assert_eq!(arms.call(check()).await.unwrap_err().kind(), ErrorKind::Timeout);
    arms.call(check()).await.unwrap();
    assert_eq!(peer.accepted(), 2);
    until(|| peer.open() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn fault_09_a_server_that_does_not_read_over_http2_is_given_up_after_the_write_limit() {
    // It makes no room for the body, or reads nothing at all.
    for reads in [true, false] {
        let peer = FramePeer::start(move |_, mut link| async move {
            link.greet(&[(INITIAL_WINDOW_SIZE, if reads { 0 } else { 1 << 30 })]).await?;
            link.window(0, 1 << 30).await?;
            if reads {
                link.request().await?;
            } else {
                sleep(Duration::from_secs(100)).await;
            }
            Ok(())
        });
        let arms = judge(&peer.url, usual());
        let began = Instant::now();
        let error = arms.call(Check { code: "x".repeat(1 << 20) }).await.unwrap_err();
        assert_eq!((error.kind(), phase(&error)), (ErrorKind::Timeout, Some("write")), "{error}");
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn fault_10_a_thousand_calls_at_once_share_a_hundred_streams() {
    let most = Arc::new(AtomicUsize::new(0));
    let counted = most.clone();
    let peer = FramePeer::start(move |_, mut link| {
        let most = counted.clone();
        async move {
            link.greet(&[]).await?;
            let mut open = Vec::new();
            loop {
                // Answers when nothing more comes.
                match tokio::time::timeout(Duration::from_millis(10), link.request()).await {
                    Ok(request) => match request? {
                        Some((stream, _)) => open.push(stream),
                        None => return Ok(()),
                    },
                    Err(_) => {
                        most.fetch_max(open.len(), Ordering::SeqCst);
                        for stream in open.drain(..) {
                            link.verdict(stream).await?;
                        }
                    }
                }
            }
        }
    });
    let arms = judge(&peer.url, usual().max_connections(1));
    arms.context().call_all((0..1000).map(|_| check())).at_once(1000).await.unwrap();
    assert_eq!((most.load(Ordering::SeqCst), peer.accepted()), (100, 1));
}

#[tokio::test(start_paused = true)]
async fn fault_10_further_streams_take_further_connections_and_then_wait() {
    let peer = FramePeer::start(|_, mut link| async move {
        // Fewer than the client would take.
        link.greet(&[(MAX_CONCURRENT_STREAMS, 2)]).await?;
        while link.request().await?.is_some() {}
        Ok(())
    });
    let arms = judge(&peer.url, usual().max_connections(3).max_idle(3));
    let mut calls = JoinSet::new();
    for _ in 0..6 {
        let arms = arms.clone();
        calls.spawn(async move { arms.call(check()).await });
    }
    until(|| peer.accepted() == 3).await;
    let began = Instant::now();
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    assert_eq!((error.kind(), phase(&error)), (ErrorKind::Timeout, Some("pool_wait")));
    assert!(!error.may_have_executed());
    assert_eq!(peer.open(), 3);
}

#[tokio::test(start_paused = true)]
async fn fault_11_ten_thousand_calls_dropped_at_random_leave_nothing() {
    let url = server(Duration::from_millis(10));
    let arms = judge(&url, usual().max_connections(3).max_idle(3).max_streams(8));
    for round in 0..2500_u64 {
        let calls = (0..4).map(|_| arms.call(check()));
        let limit = Duration::from_millis(round.wrapping_mul(7919) % 40);
        let _ = tokio::time::timeout(limit, futures_util::future::join_all(calls)).await;
    }
    arms.context().call_all((0..24).map(|_| check())).at_once(24).await.unwrap();
    // All places are free: as many as there are take no longer than one.
    let began = Instant::now();
    arms.context().call_all((0..24).map(|_| check())).at_once(24).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(25), "{:?}", began.elapsed());
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    drop(arms);
    sleep(Duration::from_secs(60)).await;
    assert!(tasks() <= 2 && before > 2, "{before} and {}", tasks());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_resets_its_stream_and_not_the_connection() {
    let peer = FramePeer::start(|_, mut link| async move {
        link.greet(&[]).await?;
        let (first, _) = link.request().await?.unwrap();
        while let Some((stream, _)) = link.request().await? {
            assert_eq!(link.reset, [first]);
            link.verdict(stream).await?;
        }
        Ok(())
    });
    let arms = judge(&peer.url, usual());
    let call = tokio::time::timeout(Duration::from_secs(1), arms.call(check())).await;
    assert!(call.is_err());
    arms.call(check()).await.unwrap();
    assert_eq!(peer.accepted(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_12_what_is_above_the_last_id_of_a_goaway_runs_once_elsewhere() {
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = ran.clone();
    let peer = FramePeer::start(move |number, mut link| {
        let ran = counted.clone();
        async move {
            link.greet(&[]).await?;
            if number > 0 {
                while let Some((stream, _)) = link.request().await? {
                    ran.fetch_add(1, Ordering::SeqCst);
                    link.verdict(stream).await?;
                }
                return Ok(());
            }
            let mut streams = Vec::new();
            while streams.len() < 10 {
                streams.push(link.request().await?.unwrap().0);
            }
            streams.sort_unstable();
            link.go_away(streams[3]).await?;
            sleep(Duration::from_secs(1)).await;
            for stream in &streams[..4] {
                ran.fetch_add(1, Ordering::SeqCst);
                link.verdict(*stream).await?;
            }
            // The client closes a connection that goes away after its last stream.
            assert!(link.request().await?.is_none());
            Ok(())
        }
    });
    let arms = judge(&peer.url, usual());
    arms.context().call_all((0..10).map(|_| check())).at_once(10).await.unwrap();
    assert_eq!((ran.load(Ordering::SeqCst), peer.accepted()), (10, 2));
    until(|| peer.open() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn fault_12_a_refused_stream_goes_again_for_any_method_and_not_for_ever() {
    for refusing in [1, usize::MAX] {
        let refused = Arc::new(AtomicUsize::new(0));
        let counted = refused.clone();
        let peer = FramePeer::start(move |number, mut link| {
            let refused = counted.clone();
            async move {
                link.greet(&[]).await?;
                while let Some((stream, _)) = link.request().await? {
                    if number < refusing {
                        refused.fetch_add(1, Ordering::SeqCst);
                        link.reset(stream, REFUSED_STREAM).await?;
                    } else {
                        link.verdict(stream).await?;
                    }
                }
                Ok(())
            }
        });
        let answer = judge(&peer.url, usual()).call(check()).await;
        if refusing == 1 {
            answer.unwrap();
            assert_eq!(peer.accepted(), 2);
        } else {
            let error = answer.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionLost);
            assert!(!error.may_have_executed() && error.retryable());
            assert_eq!(refused.load(Ordering::SeqCst), 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_12_refused_streams_do_not_wait_for_each_other_where_connections_are_few() {
    let peer = FramePeer::start(|number, mut link| async move {
        link.greet(&[]).await?;
        if number > 0 {
            return link.verdicts().await;
        }
        let mut streams = Vec::new();
        while streams.len() < 10 {
            streams.push(link.request().await?.unwrap().0);
        }
        for stream in streams {
            link.reset(stream, REFUSED_STREAM).await?;
        }
        assert!(link.request().await?.is_none());
        Ok(())
    });
    let arms = judge(&peer.url, usual().max_connections(1));
    let began = Instant::now();
    arms.context().call_all((0..10).map(|_| check())).at_once(10).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(peer.accepted(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_allows_no_streams_any_more_ends_after_those_that_run() {
    let peer = FramePeer::start(|number, mut link| async move {
        link.greet(&[]).await?;
        if number > 0 {
            return link.verdicts().await;
        }
        let (stream, _) = link.request().await?.unwrap();
        link.settings(&[(MAX_CONCURRENT_STREAMS, 0)]).await?;
        sleep(Duration::from_secs(5)).await;
        link.verdict(stream).await?;
        assert!(link.request().await?.is_none());
        Ok(())
    });
    let arms = judge(&peer.url, usual());
    let running = tokio::spawn(arms.context().call(check()).into_future());
    sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    for _ in 0..10 {
        arms.call(check()).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    running.await.unwrap().unwrap();
    assert_eq!(peer.accepted(), 2);
    until(|| peer.open() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn connections_to_a_server_with_few_streams_are_opened_side_by_side() {
    let peer = FramePeer::start(|_, mut link| async move {
        sleep(Duration::from_millis(100)).await;
        link.greet(&[(MAX_CONCURRENT_STREAMS, 2)]).await?;
        while link.request().await?.is_some() {}
        Ok(())
    });
    let arms = judge(&peer.url, usual());
    let mut calls = JoinSet::new();
    let began = Instant::now();
    for _ in 0..40 {
        let arms = arms.clone();
        calls.spawn(async move { arms.call(check()).await });
    }
    until(|| peer.accepted() == 20).await;
    assert!(began.elapsed() < Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn fault_12_a_connection_leaves_the_pool_after_1024_resets() {
    let peer = FramePeer::start(|_, mut link| async move {
        link.greet(&[]).await?;
        while let Some((stream, body)) = link.request().await? {
            if !String::from_utf8_lossy(&body).contains("drop") {
                link.verdict(stream).await?;
            }
        }
        Ok(())
    });
    let arms = judge(&peer.url, usual());
    for dropped in 1..=1024 {
        let calls = arms.call(Check { code: "drop".into() });
        assert!(tokio::time::timeout(Duration::from_millis(1), calls).await.is_err());
        assert_eq!(peer.accepted(), 1, "{dropped}");
    }
    arms.call(check()).await.unwrap();
    assert_eq!(peer.accepted(), 2);
    until(|| peer.open() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn fault_13_a_peer_that_vanishes_is_noticed_by_pings_and_the_next_call_is_served_within_25_s() {
    let peer = FramePeer::start(|number, mut link| async move {
        link.greet(&[]).await?;
        if number > 0 {
            return link.verdicts().await;
        }
        let (stream, _) = link.request().await?.unwrap();
        link.verdict(stream).await?;
        // The connection stays open, and nothing comes of it.
        sleep(Duration::from_secs(1000)).await;
        drop(link);
        Ok(())
    });
    let arms = judge(&peer.url, usual());
    arms.call(check()).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let began = Instant::now();
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    assert_eq!(error.failure().message, "the server does not answer PINGs");
    assert!(error.may_have_executed());
    assert_eq!(began.elapsed(), Duration::from_secs(25));
    arms.call(check()).await.unwrap();
    assert_eq!((began.elapsed(), peer.accepted()), (Duration::from_secs(25), 2));
}

#[tokio::test(start_paused = true)]
async fn pings_let_long_work_go_on() {
    #[derive(
        Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema, octollm_macros::TaskContract,
    )]
    #[task(name = "code.prove", output = Verdict, timeout = "10m")]
    struct Prove {}
    let pings = Arc::new(AtomicUsize::new(0));
    let counted = pings.clone();
    let peer = FramePeer::start(move |_, mut link| {
        let pings = counted.clone();
        async move {
            link.greet(&[]).await?;
            let (stream, _) = link.request().await?.unwrap();
            let _ = tokio::time::timeout(Duration::from_secs(590), link.request()).await;
            pings.store(link.pings, Ordering::SeqCst);
            link.verdict(stream).await
        }
    });
    let arms = http2(usual()).endpoint_serving::<Prove>("judge", &peer.url).build().unwrap();
    assert!(arms.call(Prove {}).await.unwrap().is_valid);
    assert!((38..=40).contains(&pings.load(Ordering::SeqCst)), "{pings:?}");
}

#[tokio::test(start_paused = true)]
async fn idle_and_old_http2_connections_are_closed() {
    let peer = FramePeer::start(|_, mut link| async move {
        link.greet(&[]).await?;
        link.verdicts().await
    });
    let arms = judge(&peer.url, usual());
    arms.call(check()).await.unwrap();
    sleep(Duration::from_secs(14)).await;
    arms.call(check()).await.unwrap();
    assert_eq!((peer.accepted(), peer.open()), (1, 1));
    sleep(Duration::from_millis(15_100)).await;
    assert_eq!(peer.open(), 0);
    for _ in 0..34 {
        sleep(Duration::from_secs(10)).await;
        arms.call(check()).await.unwrap();
    }
    assert_eq!(peer.accepted(), 3, "one is 5 minutes old at most, give or take a tenth");
    drop(arms);
    until(|| peer.open() == 0).await;
}

#[test]
fn a_runtime_that_ends_takes_its_http2_connections_with_it_and_no_others() {
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let peer = server.block_on(FramePeer::tcp(|_, mut link| async move {
        link.greet(&[]).await?;
        link.verdicts().await
    }));
    let arms = judge(&peer.url, short(Arms::builder()).idle_timeout(Duration::from_secs(10)));
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    for runtime in [&first, &second, &first, &second] {
        runtime.block_on(arms.call(check())).unwrap();
    }
    assert_eq!(peer.accepted(), 2);
    drop(first);
    second.block_on(arms.call(check())).unwrap();
    server.block_on(until(|| peer.open() == 1));
    let third = runtime();
    third.block_on(arms.call(check())).unwrap();
    assert_eq!(peer.accepted(), 3);
}

#[tokio::test(start_paused = true)]
async fn many_calls_to_a_server_of_octollm_go_over_http2_and_few_over_http1() {
    let url = server(Duration::from_millis(10));
    let network = network();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counting = Counting { inner: network, opened: accepted.clone() };
    let arms = Arms::builder().connector(counting).endpoint("judge", &url).build().unwrap();
    arms.cards().await;
    arms.context().call_all((0..20).map(|_| check())).at_once(20).await.unwrap();
    assert_eq!(accepted.load(Ordering::SeqCst), 20);
    // The rest of 1000 share a few connections.
    arms.context().call_all((0..1000).map(|_| check())).at_once(1000).await.unwrap();
    assert!(accepted.load(Ordering::SeqCst) <= 20 + 48 + 11, "{accepted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_of_octollm_whose_proxy_speaks_http1_only_is_asked_once_in_five_minutes() {
    let mut card = crate::peer::card("judge");
    card.instance = Some("3b241101-e2bb-4255-8caf-4136c566a962".into());
    let peer = Peer::with_card(card, |_| async {
        sleep(Duration::from_millis(10)).await;
        Answer::verdict()
    })
    .await;
    let arms = usual().protocol(Protocol::Auto).endpoint("judge", &peer.url).build().unwrap();
    for _ in 0..3 {
        arms.context().call_all((0..200).map(|_| check())).at_once(200).await.unwrap();
    }
    let preface = peer.calls().iter().filter(|request| request.method == "PRI").count();
    assert_eq!((preface, peer.calls().len() - preface), (1, 600));
}

/// Counts the connections that it opens.
struct Counting {
    inner: octollm_http::io::Pipes,
    opened: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl octollm_http::io::Connector for Counting {
    async fn connect(&self, to: &http::Uri) -> std::io::Result<Box<dyn octollm_http::io::Io>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.inner.connect(to).await
    }
}
