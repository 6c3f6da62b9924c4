//! A brain and an arm in this process, and the program `octo` beside them.

use std::{
    process::{Output, Stdio},
    sync::{Arc, LazyLock},
    time::Duration,
};

use octollm::{bus::MemoryBus, http::Server, prelude::*, store::MemoryStore};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::timeout,
};

use crate::examples::example;

/// Tells a story about something, word by word.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "story.tell", output = String, chunk = String)]
pub(crate) struct Tell {
    about: String,
}

/// Writes a story of the subject. Some subjects fail once, or wait before the end.
#[derive(Clone, Default)]
struct Teller(Arc<Gates>);

struct Gates {
    failures: Semaphore,
    ends: Semaphore,
}

impl Default for Gates {
    fn default() -> Self {
        Self { failures: Semaphore::new(1), ends: Semaphore::new(0) }
    }
}

#[async_trait]
impl Arm<Tell> for Teller {
    async fn execute(&self, tell: Tell, cx: &Context) -> Result<String, ArmError> {
        if tell.about == "failure"
            && let Ok(permit) = self.0.failures.try_acquire()
        {
            permit.forget();
            return Err(ArmError::failed("no story today"));
        }
        cx.progress(50, "telling");
        cx.chunk::<Tell>(&"Once ".to_owned()).await;
        if tell.about == "gate" {
            self.0.ends.acquire().await?.forget();
        }
        cx.chunk::<Tell>(&tell.about).await;
        Ok(format!("Once {}", tell.about))
    }
}

struct Goal;

#[async_trait]
impl Arm<TaskRequest> for Goal {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let mut words = cx.stream(Tell { about: request.goal });
        while let Some(word) = words.next().await {
            cx.chunk::<Tell>(&word).await;
        }
        Ok(TaskResult::new(serde_json::json!({ "story": words.output().await? })))
    }
}

/// The servers. They end with the test.
pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) arm: String,
    teller: Teller,
    store: Arc<MemoryStore>,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl World {
    pub(crate) async fn start() -> Self {
        let teller = Teller::default();
        let arm = Server::new("teller").arm(teller.clone()).bind("127.0.0.1:0").await.unwrap();
        let mut world =
            Self { url: String::new(), arm: arm.url(), teller, store: Arc::default(), server: None };
        tokio::spawn(arm.run());
        world.serve("127.0.0.1:0").await;
        world
    }

    async fn serve(&mut self, address: &str) {
        let arms = Arms::builder().endpoint("teller", &self.arm).build().unwrap();
        let brain = Brain::builder().arm::<Tell>(self.teller.clone()).arm(Goal).arms(arms);
        let bus = Arc::new(MemoryBus::new());
        let brain = brain.bus(bus.clone()).store(self.store.clone()).build().unwrap();
        brain.recover().await.unwrap();
        let server = Server::new("brain").orchestrator(brain).bus(bus).drain_notice(Duration::ZERO);
        let server = server.drain_grace(Duration::from_millis(1)).bind(address).await.unwrap();
        self.url = server.url();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run_until(async { drop(stopped.await) }));
        self.server = Some((stop, running));
    }

    /// Ends the server of the brain, which hands its tasks back.
    pub(crate) async fn stop(&mut self) {
        let (stop, running) = self.server.take().unwrap();
        drop(stop);
        running.await.unwrap();
    }

    /// Starts it at the same address.
    pub(crate) async fn start_again(&mut self) {
        let address = self.url.trim_start_matches("http://").to_owned();
        self.serve(&address).await;
    }

    /// Lets one story about a gate end.
    pub(crate) fn open_gate(&self) {
        self.teller.0.ends.add_permits(1);
    }

    pub(crate) fn octo(&self, arguments: &[&str]) -> Command {
        octo_at(&self.url, arguments)
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.octo(arguments)).await
    }
}

/// The program, with nothing of the environment of the tests.
pub(crate) fn octo_at(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::from(example("octo"));
    command.args(arguments).env("OCTOLLM_URL", url).env_remove("OCTOLLM_TOKEN").env_remove("NO_COLOR");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The end of the program.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    /// The output, one object a line.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let read = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        self.out.lines().map(read).collect()
    }

    /// The problem on the standard error.
    pub(crate) fn problem(&self) -> Value {
        serde_json::from_str(&self.err).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Longer than any program takes, so that a test ends that would wait for ever.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) async fn ran(mut command: Command) -> Ran {
    timeout(LONG, command.output()).await.expect("it ends").expect("it runs").into()
}

pub(crate) async fn ended(child: Child) -> Ran {
    timeout(LONG, child.wait_with_output()).await.expect("it ends").expect("it runs").into()
}

/// Reads until this text has arrived.
pub(crate) async fn read_until(from: &mut (impl AsyncRead + Unpin), text: &str) -> String {
    let mut read = String::new();
    let reading = async {
        while !read.contains(text) {
            let byte = from.read_u8().await.unwrap_or_else(|error| panic!("{error} after {read:?}"));
            read.push(char::from(byte));
        }
    };
    timeout(LONG, reading).await.expect("it prints");
    read
}

/// The id of the task in a text.
pub(crate) fn task_in(text: &str) -> String {
    static ID: LazyLock<regex::Regex> = LazyLock::new(|| regex::Regex::new("task_[a-zA-Z0-9]{16}").unwrap());
    ID.find(text).unwrap_or_else(|| panic!("no id in {text:?}")).as_str().to_owned()
}
