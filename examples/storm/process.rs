//! The server in a process of its own, and its figures as Linux has them in `/proc`; elsewhere they are 0.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::Result;

pub(crate) type Sockets = usize;

/// A server that runs this program. It is killed on drop.
pub(crate) struct Process {
    child: Child,
    address: SocketAddr,
}

/// What a process has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) resident: u64,
    pub(crate) sockets: Sockets,
}

impl Process {
    /// Starts a server, which prints its address first.
    pub(crate) fn start(words: &[&str]) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        let mut child = command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        match line.trim().parse() {
            Ok(address) => Ok(Self { child, address }),
            Err(_) => {
                let _ = child.kill();
                Err(format!("the server does not start: {line:?}").into())
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn figures(&self) -> Figures {
        let folder = format!("/proc/{}", self.child.id());
        let kib = resident_kib(&folder).unwrap_or_default();
        let links = fs::read_dir(format!("{folder}/fd")).into_iter().flatten().flatten();
        let is_socket = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
        };
        Figures { resident: kib * 1024, sockets: links.filter(is_socket).count() }
    }

    /// The sockets beyond this number, once there are none or after 15 s.
    pub(crate) async fn sockets_left(&self, before: Sockets) -> Sockets {
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            let left = self.figures().sockets.saturating_sub(before);
            if left == 0 || Instant::now() > end {
                return left;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Figures {
    pub(crate) fn resident_mib(&self) -> f64 {
        self.resident as f64 / f64::from(1 << 20)
    }
}

/// Resident memory of a process, by its folder in `/proc`.
pub(crate) fn resident_kib(folder: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("{folder}/status")).ok()?;
    let value = |line: &str| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok();
    status.lines().find_map(value)
}
