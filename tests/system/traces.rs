//! Traces as a collector receives them.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::Request;
use octollm::{
    context::ContextParts,
    error::Failure,
    http::server::{HttpBody, HttpService},
    orchestrator::finished,
    otel::Exporter,
    prelude::*,
    reflex::{Reaction, Reflex, ReflexInput},
    store::MemoryStore,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::Instant,
};
use tower::{ServiceExt, layer::layer_fn};
use tracing::{Instrument, info_span};

use crate::{
    collector::{CLIENT, CONSUMER, Collector, Exported, INTERNAL, SERVER},
    examples,
    logged::Log,
};

/// Calls another arm.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "trace.outer", output = u64, idempotent)]
struct Outer {
    number: u64,
}

/// Is called.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "trace.inner", output = u64, idempotent)]
struct Inner {
    number: u64,
}

/// Notes the trace that it is part of.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, cx: &Context) {
        let trace = cx.trace().map(|trace| trace.traceparent().to_owned());
        self.0.lock().unwrap().push(trace.unwrap_or_default());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Arm<Inner> for Notes {
    async fn execute(&self, input: Inner, cx: &Context) -> Result<u64, ArmError> {
        self.add(cx);
        tracing::info!("noted");
        Ok(input.number)
    }
}

#[async_trait]
impl Arm<Outer> for Notes {
    async fn execute(&self, input: Outer, cx: &Context) -> Result<u64, ArmError> {
        // Within a span of the program.
        let call = cx.call(Inner { number: input.number });
        Ok(call.instrument(info_span!("own")).await?)
    }
}

/// Runs as a task: a call of an arm that calls another one, a batch, and a call on the runtime without the spans around it.
#[async_trait]
impl Arm<TaskRequest> for Notes {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        cx.call(Outer { number: 1 }).await?;
        cx.call_all([Inner { number: 2 }, Inner { number: 3 }]).await?;
        tokio::spawn(cx.call(Inner { number: 4 })).await??;
        Ok(TaskResult::new("done"))
    }
}

#[async_trait]
impl Reflex for Notes {
    async fn react(&self, _: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        Ok(Reaction::Pass)
    }
}

/// The spans of one trace.
struct Trace(Vec<Exported>);

impl Trace {
    /// Those that were received of a trace whose caller is this span, each with a parent that was received too.
    fn of(exporter: &Exporter, collector: &Collector, id: &str, caller: &str) -> Self {
        assert!(exporter.flush());
        let spans: Vec<_> = collector.spans().into_iter().filter(|span| span.trace == id).collect();
        let mut ids: BTreeSet<_> = spans.iter().map(|span| &*span.id).collect();
        assert_eq!(ids.len(), spans.len(), "{spans:#?}");
        ids.insert(caller);
        for span in &spans {
            assert!(ids.contains(&*span.parent), "{span:#?}");
        }
        Self(spans)
    }

    fn named(&self, name: &str) -> Vec<&Exported> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    fn one(&self, name: &str) -> &Exported {
        let spans = self.named(name);
        assert_eq!(spans.len(), 1, "{name}: {:#?}", self.0);
        spans[0]
    }

    /// Names and kinds of a span and those above it.
    fn path(&self, span: &Exported) -> Vec<(&str, u64)> {
        let mut path = Vec::new();
        let mut id = span.id.as_str();
        while let Some(span) = self.0.iter().find(|span| span.id == id) {
            path.push((&*span.name, span.kind));
            id = &span.parent;
        }
        path
    }

    /// The caller of the first span.
    fn caller(&self, span: &Exported) -> String {
        let mut id = span.id.clone();
        while let Some(span) = self.0.iter().find(|span| span.id == id) {
            id.clone_from(&span.parent);
        }
        id
    }
}

fn exporter(collector: &Collector) -> Exporter {
    Exporter::builder("tested").endpoint(&collector.url).build().unwrap()
}

const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Sends a request of a foreign client, and reads the answer.
async fn send(address: SocketAddr, line: &str, trace: &str, body: &str) -> String {
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTraceparent: {trace}\r\nTracestate: vendor=1\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// An arm that calls another one, each with a server, and the client of both.
async fn two_arms(notes: &Notes) -> (SocketAddr, Arms) {
    let inner = Server::new("inner").arm::<Inner>(notes.clone()).bind("127.0.0.1:0").await.unwrap();
    let to_inner = Arms::builder().endpoint("inner", inner.url()).build().unwrap();
    let outer = Server::new("outer").arm::<Outer>(notes.clone()).arms(to_inner);
    let outer = outer.bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().endpoint("inner", inner.url()).endpoint("outer", outer.url()).build().unwrap();
    let address = outer.local_addr();
    tokio::spawn(inner.run());
    tokio::spawn(outer.run());
    (address, arms)
}

#[tokio::test]
async fn a_task_is_one_trace_from_a_foreign_caller_to_the_last_arm() {
    let (collector, notes) = (Collector::start(), Notes::default());
    let exporter = exporter(&collector);
    let _log = Log::beside(&exporter);
    let (_, arms) = two_arms(&notes).await;
    let brain = Brain::builder().arm::<TaskRequest>(notes.clone()).arms(arms).build().unwrap();
    let brain = Server::new("brain").orchestrator(brain).bind("127.0.0.1:0").await.unwrap();
    let behind = OrchestratorClient::new(brain.url()).unwrap();
    let reflex = Server::new("reflex").reflex(notes.clone()).orchestrator(behind.clone());
    let reflex = reflex.bind("127.0.0.1:0").await.unwrap();
    let address = reflex.local_addr();
    tokio::spawn(brain.run());
    tokio::spawn(reflex.run());

    let answer =
        send(address, "POST /tasks", &format!("00-{ID}-{CALLER}-01"), r#"{"goal":"all of it"}"#).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let task: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let task = task["task_id"].as_str().unwrap();
    let done = finished(&behind, &task.parse().unwrap(), &Context::detached()).await.unwrap();
    assert_eq!(done.status, TaskStatus::Completed, "{:?}", done.error);

    let trace = Trace::of(&exporter, &collector, ID, CALLER);
    let submitted = [
        ("arm task.run", INTERNAL),
        ("task task.run", CONSUMER),
        ("POST /tasks", SERVER),
        ("POST", CLIENT),
        ("POST /tasks", SERVER),
    ];
    let hop = |contract: &'static str, route: &'static str| {
        [(contract, INTERNAL), (route, SERVER), ("POST", CLIENT)]
    };
    let inner = hop("arm trace.inner", "POST /inner");
    let outer = hop("arm trace.outer", "POST /outer");
    let (call_inner, call_outer) = (("call trace.inner", INTERNAL), ("call trace.outer", INTERNAL));
    let direct = [&inner[..], &[call_inner], &submitted].concat();
    let nested = [&inner[..], &[call_inner, ("own", INTERNAL)], &outer, &[call_outer], &submitted].concat();
    let mut paths: Vec<_> = trace.named("arm trace.inner").into_iter().map(|span| trace.path(span)).collect();
    paths.sort_by_key(Vec::len);
    assert_eq!(paths, [direct.clone(), direct.clone(), direct, nested]);
    assert!(trace.0.iter().all(|span| trace.caller(span) == CALLER && !span.is_error));

    // Ids are attributes, never names.
    let arm = trace.one("arm trace.outer");
    let attribute = |name: &str| arm.attributes.get(name).map(String::as_str);
    assert_eq!(attribute("octollm.task.id"), Some(task));
    assert_eq!(attribute("octollm.contract"), Some("trace.outer"));
    assert_eq!((attribute("target"), &*arm.service, &*arm.state), (None, "tested", "vendor=1"));
    let request = trace.one("POST /outer");
    assert_eq!(request.attributes["http.route"], "/outer");
    assert_eq!(request.attributes["http.response.status_code"], "200");
    assert_eq!(request.attributes["http.request.method"], "POST");
    assert_eq!(trace.named("arm trace.inner")[0].events, ["noted"]);
    for span in &trace.0 {
        assert!(!span.name.contains(task) && !span.name.contains("127.0.0.1"), "{span:#?}");
    }
}

/// Waits for ever the first time.
struct Stuck(Arc<Notify>, AtomicU32);

#[async_trait]
impl Arm<TaskRequest> for Stuck {
    async fn execute(&self, _: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        if self.1.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(TaskResult::new("done"))
    }
}

#[tokio::test]
async fn a_task_that_another_brain_takes_over_stays_in_its_trace() {
    let collector = Collector::start();
    let exporter = exporter(&collector);
    let _log = Log::beside(&exporter);
    let (store, begun) = (Arc::new(MemoryStore::new()), Arc::new(Notify::new()));
    let arm = Arc::new(Stuck(begun.clone(), AtomicU32::new(0)));
    let brain = || Brain::builder().arm::<TaskRequest>(arm.clone()).store(store.clone()).build().unwrap();
    let one = brain();
    let (two, cx) = (brain(), Context::detached());

    // Within a span of the program, which begins the trace.
    let submit = one.submit(TaskRequest::new("now").into(), &cx).instrument(info_span!("edge"));
    let task = submit.await.unwrap();
    begun.notified().await;
    one.close().await;
    two.recover().await.unwrap();
    let done = finished(&two, &task.task_id, &cx).await.unwrap();
    assert_eq!(done.status, TaskStatus::Completed);

    assert!(exporter.flush());
    let spans = collector.spans();
    let edge = spans.iter().find(|span| span.name == "edge").unwrap();
    let trace = Trace::of(&exporter, &collector, &edge.trace, "");
    let runs: Vec<_> =
        trace.named("task task.run").into_iter().map(|span| &*span.attributes["octollm.task.run"]).collect();
    assert_eq!(runs, ["1", "2"]);
    for name in ["task task.run", "arm task.run"] {
        assert_eq!(trace.named(name).len(), 2);
    }
    assert!(trace.named("task task.run").iter().all(|span| span.parent == edge.id));
    assert_eq!(spans.len(), 5, "{spans:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_mesh_is_traced_as_a_network_is() {
    let (collector, notes) = (Collector::start(), Notes::default());
    let exporter = exporter(&collector);
    let _log = Log::beside(&exporter);
    let mesh = Mesh::builder()
        .arm::<Inner>("inner", notes.clone())
        .arm::<Outer>("outer", notes.clone())
        .brain::<TaskRequest>(notes.clone())
        .start()
        .await;
    let task = mesh.run(TaskRequest::new("all of it")).instrument(info_span!("edge")).await.unwrap();
    assert_eq!(task.status, TaskStatus::Completed);

    assert!(exporter.flush());
    let edge = collector.spans().into_iter().find(|span| span.name == "edge").unwrap();
    let trace = Trace::of(&exporter, &collector, &edge.trace, "");
    let task = ["arm task.run", "task task.run", "edge"];
    let direct = [&["arm trace.inner", "call trace.inner"][..], &task].concat();
    let nested =
        [&["arm trace.inner", "call trace.inner", "own", "arm trace.outer", "call trace.outer"][..], &task]
            .concat();
    let path = |span| -> Vec<_> { trace.path(span).into_iter().map(|(name, _)| name).collect() };
    let mut paths: Vec<_> = trace.named("arm trace.inner").into_iter().map(path).collect();
    paths.sort_by_key(Vec::len);
    assert_eq!(paths, [direct.clone(), direct.clone(), direct, nested]);
    assert_eq!(collector.spans().len(), trace.0.len());
}

/// Is overloaded the first time.
struct Flaky(AtomicU32);

#[async_trait]
impl Arm<Inner> for Flaky {
    async fn execute(&self, input: Inner, _: &Context) -> Result<u64, ArmError> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Failure::of(ErrorKind::Unavailable).into()),
            _ => Ok(input.number),
        }
    }
}

#[tokio::test]
async fn each_attempt_of_a_call_is_a_span_with_the_servers_below_it() {
    let collector = Collector::start();
    let exporter = exporter(&collector);
    let _log = Log::beside(&exporter);
    let server =
        Server::new("inner").arm::<Inner>(Flaky(AtomicU32::new(0))).bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().endpoint("inner", server.url()).build().unwrap();
    let port = server.local_addr().port().to_string();
    tokio::spawn(server.run());
    assert_eq!(arms.context().call(Inner { number: 1 }).retry(2).await.unwrap(), 1);

    assert!(exporter.flush());
    let id = collector.spans().into_iter().find(|span| span.name == "call trace.inner").unwrap().trace;
    let trace = Trace::of(&exporter, &collector, &id, "");
    let (call, sent) = (trace.one("call trace.inner"), trace.named("POST"));
    assert!(!call.is_error);
    let seen = |span: &Exported| {
        let attribute = |name: &str| span.attributes.get(name).cloned().unwrap_or_default();
        assert_eq!((&*span.parent, attribute("server.port")), (&*call.id, port.clone()));
        (attribute("http.response.status_code"), attribute("http.request.resend_count"), span.is_error)
    };
    let mut seen: Vec<_> = sent.iter().map(|span| seen(span)).collect();
    seen.sort_by_key(|(_, resent, _)| resent.clone());
    assert_eq!(seen, [("503".into(), String::new(), true), ("200".into(), "1".into(), false)]);
    let arms = trace.named("arm trace.inner");
    let codes: BTreeSet<_> = arms.iter().map(|arm| arm.attributes.get("error.type").cloned()).collect();
    assert_eq!(codes, BTreeSet::from([None, Some("unavailable".into())]));
    assert_eq!(arms.iter().filter(|arm| arm.is_error).count(), 1);
    let paths: BTreeSet<_> = arms.iter().map(|arm| trace.path(arm)).collect();
    assert_eq!(paths.len(), 1, "{paths:#?}");
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_is_passed_on_and_not_exported() {
    let (collector, notes) = (Collector::start(), Notes::default());
    let exporter = exporter(&collector);
    let _log = Log::beside(&exporter);
    let (address, _) = two_arms(&notes).await;
    for flags in ["00", "01"] {
        let answer =
            send(address, "POST /outer", &format!("00-{ID}-{CALLER}-{flags}"), r#"{"number":1}"#).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let noted = notes.all().pop().unwrap();
        assert!(noted.starts_with(&format!("00-{ID}-")) && noted.ends_with(flags), "{noted}");
        assert!(!noted.contains(CALLER), "{noted}");
        let trace = Trace::of(&exporter, &collector, ID, CALLER);
        match flags {
            "00" => assert!(trace.0.is_empty(), "{:#?}", trace.0),
            // What an arm reads is its own span.
            _ => assert!(noted.contains(&trace.one("arm trace.inner").id), "{noted}"),
        }
    }
}

#[tokio::test]
async fn a_foreign_service_finds_the_exported_span_in_the_request() {
    let (collector, notes) = (Collector::start(), Notes::default());
    let exporter = exporter(&collector);
    let _log = Log::beside(&exporter);
    let heads = Arc::<Mutex<Vec<(String, String)>>>::default();
    let seen = heads.clone();
    let reads = move |inner: HttpService| {
        let seen = seen.clone();
        inner.map_request(move |request: Request<HttpBody>| {
            if request.uri().path() == "/inner" {
                let field = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
                seen.lock().unwrap().push((field("traceparent"), field("tracestate")));
            }
            request
        })
    };
    let server = Server::new("inner").arm::<Inner>(notes).layer(layer_fn(reads));
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().endpoint("inner", server.url()).build().unwrap();
    tokio::spawn(server.run());
    let mut parts = ContextParts::new();
    let from: octollm::trace::TraceContext = format!("00-{ID}-{CALLER}-01").parse().unwrap();
    parts.trace = Some(from.with_tracestate("vendor=1"));
    let cx = Context::from_parts(parts, Arc::new(arms));
    assert_eq!(cx.call(Inner { number: 1 }).await.unwrap(), 1);

    let trace = Trace::of(&exporter, &collector, ID, CALLER);
    let sent = trace.one("POST");
    assert_eq!(*heads.lock().unwrap(), [(format!("00-{ID}-{}-01", sent.id), "vendor=1".into())]);
    assert_eq!((sent.kind, &*trace.path(sent)[1].0), (CLIENT, "call trace.inner"));
}

#[tokio::test]
async fn probes_are_not_exported_and_an_error_of_the_server_is_one() {
    let (collector, notes) = (Collector::start(), Notes::default());
    let exporter = exporter(&collector);
    let _log = Log::beside(&exporter);
    let (address, _) = two_arms(&notes).await;
    let parent = format!("00-{ID}-{CALLER}-01");
    for (line, body) in
        [("GET /health", ""), ("GET /metrics", ""), ("GET /swordfish", ""), ("BREW /outer", "")]
    {
        send(address, line, &parent, body).await;
    }
    send(address, "POST /outer", &parent, r#"{"number":true}"#).await;
    let trace = Trace::of(&exporter, &collector, ID, CALLER);
    let seen = |span: &Exported| {
        let attribute = |name: &str| span.attributes.get(name).cloned().unwrap_or_default();
        (span.name.clone(), attribute("http.response.status_code"), attribute("http.route"), span.is_error)
    };
    let mut seen: Vec<_> = trace.0.iter().filter(|span| span.kind == SERVER).map(seen).collect();
    seen.sort();
    let expected =
        [("GET", "404", "", false), ("HTTP", "501", "", true), ("POST /outer", "422", "/outer", false)];
    let expected =
        expected.map(|(name, status, route, failed)| (name.into(), status.into(), route.into(), failed));
    assert_eq!(seen, expected);
    assert!(trace.one("arm trace.outer").is_error);
    assert!(!format!("{:?}", trace.0).contains("swordfish"));
}

fn lost() -> f64 {
    let page = octollm::metrics::page();
    let line = page.lines().find_map(|line| line.strip_prefix("octollm_spans_lost_total "));
    line.map_or(0.0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_collector_that_hangs_or_is_away_delays_no_call_and_the_loss_is_reported() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [Collector::hanging().url, format!("http://{closed}")] {
        let exporter = Exporter::builder("tested").endpoint(&url).max_queue(20);
        let exporter = exporter.flush_timeout(Duration::from_millis(300)).build().unwrap();
        let log = Log::beside(&exporter);
        let (_, arms) = two_arms(&Notes::default()).await;
        let (before, begun) = (lost(), Instant::now());
        for number in 0..50 {
            assert_eq!(arms.call(Outer { number }).await.unwrap(), number);
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let ending = Instant::now();
        drop(exporter);
        assert!(ending.elapsed() < Duration::from_secs(5), "{:?}", ending.elapsed());
        // Each of the calls has nine spans, of which twenty could wait.
        assert!(lost() - before >= 300.0, "{}", lost() - before);
        let warned = log.said("spans were lost on the way to the collector");
        assert_eq!(warned.len(), 1, "{warned:#?}");
        assert!(warned[0].own["spans"].parse::<u32>().unwrap() >= 300, "{warned:#?}");
    }
}

#[test]
fn a_program_that_ends_has_sent_everything() {
    let collector = Collector::start();
    let run = |set: &[(&str, &str)]| {
        let (mut server, address) = examples::serve_with("traced_arm", |command| {
            command
                .stdout(Stdio::null())
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
                .envs(set.iter().copied())
        });
        let (status, body) = examples::request(address, "POST", "/count", r#"{"text":"ten arms"}"#);
        assert_eq!((status, &*body), (200, "2"));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(server.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        assert!(server.0.wait().unwrap().success());
        collector.spans()
    };
    assert!(run(&[("OTEL_SDK_DISABLED", "true")]).is_empty());
    assert!(run(&[("OTEL_TRACES_SAMPLER", "always_off")]).is_empty());
    let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
    assert!(run(&ratio).is_empty());
    let spans = run(&[]);
    let names: Vec<_> = spans.iter().map(|span| (&*span.service, &*span.name)).collect();
    assert_eq!(names, [("counter", "arm text.count"), ("counter", "POST /count")]);
    assert_eq!(spans[0].events, ["counted"]);
    let named = run(&[("OTEL_SERVICE_NAME", "words")]);
    assert_eq!(named.last().unwrap().service, "words");
}

#[test]
fn settings_that_are_wrong_are_refused() {
    let built = |builder: octollm::otel::ExporterBuilder| builder.build().unwrap_err().setting().to_owned();
    let builder = || Exporter::builder("tested");
    assert_eq!(built(builder().endpoint("collector:4318")), "endpoint");
    assert_eq!(built(builder().endpoint("http://me:secret@collector")), "endpoint");
    assert_eq!(built(builder().sampled(f64::NAN)), "sampled");
    assert_eq!(built(builder().max_queue(0)), "max_queue");
    assert_eq!(built(builder().flush_timeout(Duration::from_secs(3_600))), "flush_timeout");
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ] {
        let output = examples::example("traced_arm").arg("127.0.0.1:0").env(name, value).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(name), "{name}: {said}");
    }
}
