//! The processes of the parts: started, killed, started again, and ended.

use std::{
    env,
    future::Future,
    net::{Ipv4Addr, TcpListener},
    pin::Pin,
    process::Stdio,
    time::Duration,
};

use octollm::RestClient;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    Result,
    parts::{CHILD, Setting},
    say,
};

/// The parts, in the order in which they start.
const PARTS: [&str; 9] = [
    "writer-1",
    "writer-2",
    "critic-1",
    "critic-2",
    "publisher-1",
    "publisher-2",
    "brain-1",
    "brain-2",
    "reflex",
];

/// Time in which a part starts, between two attempts, and in which it ends.
const START: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(300);
const END: Duration = Duration::from_secs(10);

/// The processes. They are killed on drop.
pub(crate) struct Fleet {
    setting: Setting,
    parts: Vec<Child>,
    kills: u64,
}

impl Fleet {
    pub(crate) async fn start(mut setting: Setting) -> Result<Self> {
        let mut random = Random(u64::from(std::process::id()));
        // Each port is taken until its part starts, so that no other program gets it meanwhile.
        let mut taken = Vec::new();
        for name in PARTS {
            let listener = free_port(&mut random)?;
            setting.parts.push((name.to_owned(), listener.local_addr()?));
            taken.push(listener);
        }
        let mut fleet = Self { setting, parts: Vec::new(), kills: 0 };
        for (name, listener) in PARTS.into_iter().zip(taken) {
            drop(listener);
            let child = fleet.start_part(name).await?;
            fleet.parts.push(child);
        }
        Ok(fleet)
    }

    /// Starts a part, again where it ends before it serves, as a supervisor does.
    async fn start_part(&self, name: &str) -> Result<Child> {
        let until = Instant::now() + START;
        loop {
            match self.try_to_start(name).await {
                Ok(child) => return Ok(child),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    async fn try_to_start(&self, name: &str) -> Result<Child> {
        let mut command = Command::new(env::current_exe()?);
        command.env(CHILD[0], name).env(CHILD[1], serde_json::to_string(&self.setting)?);
        // Ctrl-C in a terminal is for this process.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut lines = BufReader::new(output).lines();
        match timeout(START, lines.next_line()).await {
            Ok(Ok(Some(_))) => Ok(child),
            _ => Err(format!("{name} does not start").into()),
        }
    }

    /// Kills a part and starts it again each second or so, until the work ends.
    pub(crate) async fn with_chaos<T>(
        &mut self,
        seed: u64,
        work: &mut Pin<&mut impl Future<Output = T>>,
    ) -> Result<T> {
        let mut random = Random(seed);
        loop {
            let wait = Duration::from_millis(300 + random.below(900));
            tokio::select! {
                done = &mut *work => return Ok(done),
                () = sleep(wait) => {}
            }
            let at = random.below(PARTS.len() as u64) as usize;
            let away = Duration::from_millis(random.below(600));
            // Parts go on while one of them is away.
            let killed = async {
                // SIGKILL: nothing is handed over, and nothing is written any more.
                self.parts[at].kill().await?;
                self.kills += 1;
                say(&format!("{:<11} is killed, and is back after {} ms", PARTS[at], away.as_millis()));
                sleep(away).await;
                self.parts[at] = self.start_part(PARTS[at]).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            };
            let mut killed = std::pin::pin!(killed);
            tokio::select! {
                back = &mut killed => back?,
                done = &mut *work => {
                    killed.await?;
                    return Ok(done);
                }
            }
        }
    }

    pub(crate) fn kills(&self) -> u64 {
        self.kills
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}", self.setting.of(name)[0])
    }

    /// Prints where to look.
    pub(crate) async fn print(&self) -> Result<()> {
        for (name, address) in &self.setting.parts {
            say(&format!("{name:<11} http://{address}"));
        }
        // Those of the brains: the figures on a page are of the process that serves it, and the reflex runs no tasks.
        for brain in ["brain-1", "brain-2"] {
            let url = self.url(brain);
            let client = RestClient::builder(&url).within(START).build()?;
            // A build without it has no such route.
            if client.get("dashboard").header("accept", "text/html").stream().await.is_ok() {
                say(&format!("dashboard   {url}/dashboard"));
            }
        }
        let url = self.url("reflex");
        say(&format!("\nocto --url {url} submit \"a story about a crab\"\nocto --url {url} events\n"));
        Ok(())
    }

    /// Ends the parts in order: those first that send work to others.
    pub(crate) async fn end(mut self) {
        while let Some(mut part) = self.parts.pop() {
            drop(part.stdin.take());
            if timeout(END, part.wait()).await.is_err() {
                let _ = part.kill().await;
            }
        }
    }
}

/// A port that is free, below those that the system gives to connections: a part that is away finds it free again.
fn free_port(random: &mut Random) -> Result<TcpListener> {
    for _ in 0..1_000 {
        let port = 15_000 + random.below(15_000) as u16;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener);
        }
    }
    Err("no port is free".into())
}

/// SplitMix64: the same numbers for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}
