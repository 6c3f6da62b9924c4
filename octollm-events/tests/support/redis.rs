//! A Redis server for tests: in a temporary folder, on a free port, killed, stopped and started again as a test asks.
//!
//! It needs Debian's `redis-server`. Other test crates include this file by its path.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A server. It ends with the value, or with the process of the test.
#[derive(Debug)]
pub struct Redis {
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    server: Mutex<Option<Child>>,
    /// Ends the server and deletes the folder when its standard input is closed.
    guard: Child,
}

/// How long a server may take to start or to end.
const LIMIT: Duration = Duration::from_secs(30);

impl Redis {
    /// The server that the tests of one process share. They use names of their own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// Starts a server with further arguments, such as `--appendonly yes`. It stores nothing, unless they say so.
    pub fn start(settings: &[&str]) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("octollm-redis-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let guard = guard(&folder);
        let settings = settings.iter().flat_map(|setting| setting.split(' ')).map(str::to_owned).collect();
        let mut server = Self { folder, port: 0, settings, server: Mutex::default(), guard };
        // Another process may take the port meanwhile.
        while !server.try_start(free_port()) {}
        server
    }

    /// Starts the server on a port. `false` where it ends at once.
    #[allow(clippy::zombie_processes, reason = "a server that runs is waited for where it is killed")]
    fn try_start(&mut self, port: u16) -> bool {
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--save", "", "--pidfile", "", "--logfile", "log", "--dir"])
            .arg(&self.folder);
        command.args(["--port", &port.to_string()]).args(&self.settings);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        fs::write(self.folder.join("pid"), child.id().to_string()).unwrap();
        self.port = port;
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            let answer = self.try_execute("PING").unwrap_or_default();
            if answer.starts_with("+PONG") || answer.starts_with("-NOAUTH") {
                *self.server.lock().unwrap() = Some(child);
                return true;
            }
            sleep(Duration::from_millis(10));
        }
        panic!("the server does not start: {}", fs::read_to_string(self.folder.join("log")).unwrap());
    }

    /// The URL of the server.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the server.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Executes a command whose words have no spaces, and returns the first bytes of the answer in RESP2.
    pub fn execute(&self, command: &str) -> String {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.execute_words(&words)
    }

    /// Executes a command, and returns the first bytes of the answer in RESP2.
    pub fn execute_words(&self, words: &[&[u8]]) -> String {
        let answer = self.ask(words).unwrap();
        assert!(!answer.starts_with('-'), "{words:?}: {answer}");
        answer
    }

    fn try_execute(&self, command: &str) -> std::io::Result<String> {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.ask(&words)
    }

    fn ask(&self, words: &[&[u8]]) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            command.extend_from_slice(word);
            command.extend_from_slice(b"\r\n");
        }
        stream.write_all(&command)?;
        let mut answer = [0; 64 * 1024];
        let read = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
    }

    /// Kills the server, as a power cut does to the program. Returns when it is gone.
    pub fn kill(&self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Starts a killed server again, on the same port.
    pub fn restart(&mut self) {
        let end = Instant::now() + LIMIT;
        while !self.try_start(self.port) {
            assert!(Instant::now() < end, "the server does not start again");
            sleep(Duration::from_millis(50));
        }
    }

    /// Stops the server where it is: connections stay open, and nobody answers.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Continues a stopped server.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(server) = &*self.server.lock().unwrap() {
            kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), signal).unwrap();
        }
    }

    /// Closes all connections of clients.
    pub fn disconnect(&self) {
        for kind in ["normal", "pubsub"] {
            self.execute(&format!("CLIENT KILL TYPE {kind}"));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A process that ends the server and deletes its folder, also where the test was killed.
fn guard(folder: &Path) -> Child {
    let script = r#"
        read -r line
        [ -f "$0/pid" ] && kill -9 "$(cat "$0/pid")" 2>/dev/null
        sleep 0.1
        rm -rf "$0"
    "#;
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A port that nobody uses at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
