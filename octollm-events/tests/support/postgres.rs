//! A server of Postgres for tests: in a temporary folder, on a free port, killed, stopped and started again as a test asks.
//!
//! It needs Debian's `postgresql`. As root it runs as user `postgres`. Other test crates include this file by its path.

use std::{
    fs,
    io::Write,
    net::TcpListener,
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
    unistd::{Pid, Uid},
};

/// A server. It ends with the value, or with the process of the test.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    server: Mutex<Option<Child>>,
    /// Ends the server and deletes the folder when its standard input is closed.
    guard: Child,
}

/// The password of the user `postgres`.
pub const PASSWORD: &str = "secret-of-the-tests";

/// How long a server may take to start or to end.
const LIMIT: Duration = Duration::from_secs(30);

impl Postgres {
    /// The server that the tests of one process share. Each takes a database of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// Starts a server with further settings, such as `max_connections=10`. It does not wait for the disk, unless `fsync=on` is one of them:
    /// what a killed server has written survives in the caches of the system.
    pub fn start(settings: &[&str]) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("octollm-pg-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        if Uid::effective().is_root() {
            run(Command::new("chown").arg("postgres").arg(&folder));
        }
        let guard = guard(&folder);
        let password = folder.join("password");
        fs::File::create(&password).unwrap().write_all(PASSWORD.as_bytes()).unwrap();
        let initdb = as_postgres(&program("initdb"))
            .args([
                "--no-sync",
                "--no-locale",
                "-E",
                "UTF8",
                "-U",
                "postgres",
                "-A",
                "scram-sha-256",
                "--pwfile",
            ])
            .arg(&password)
            .arg("-D")
            .arg(folder.join("data"))
            .stdout(Stdio::null())
            .status();
        assert!(initdb.unwrap().success(), "initdb failed");
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut server = Self { folder, port: 0, settings, server: Mutex::default(), guard };
        // Another process may take the port meanwhile.
        while !server.try_start(free_port()) {}
        server
    }

    /// Starts the server on a port. `false` where it ends at once.
    #[allow(clippy::zombie_processes, reason = "a server that runs is waited for where it is killed")]
    fn try_start(&mut self, port: u16) -> bool {
        let log = fs::File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = as_postgres(&program("postgres"));
        command.arg("-D").arg(self.folder.join("data")).arg("-k").arg(&self.folder);
        command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        for setting in ["fsync=off", "max_connections=200"] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if self.is_ready(child.id()) {
                self.port = port;
                *self.server.lock().unwrap() = Some(child);
                return true;
            }
            sleep(Duration::from_millis(20));
        }
        panic!("the server does not start: {}", fs::read_to_string(self.folder.join("log")).unwrap());
    }

    /// The last line of the file says whether the server is ready. A killed server leaves its file.
    fn is_ready(&self, pid: u32) -> bool {
        let file = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = file.lines().collect();
        let is_own = lines.first().is_some_and(|line| line.trim().parse() == Ok(pid));
        is_own && lines.get(7).is_some_and(|line| line.trim() == "ready")
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates a database with a name of its own, and returns its URL.
    pub fn database(&self) -> String {
        static CREATED: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", CREATED.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// Executes a statement by `psql`, and returns what it writes.
    pub fn execute(&self, database: &str, statement: &str) -> String {
        let output = Command::new(program("psql"))
            .env("PGPASSWORD", PASSWORD)
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres"])
            .args(["-p", &self.port.to_string(), "-d", database, "-c", statement])
            .output()
            .unwrap();
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The address of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills the server with all its processes, as a power cut does to the program. Returns when they are gone.
    pub fn kill(&self) {
        let processes = self.processes();
        processes.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        if let Some(mut server) = self.server.lock().unwrap().take() {
            server.wait().unwrap();
        }
        let end = Instant::now() + LIMIT;
        while processes.iter().any(|pid| is_alive(*pid)) && Instant::now() < end {
            sleep(Duration::from_millis(5));
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

    /// Stops all processes of the server where they are: connections stay open, and nobody answers.
    pub fn stop(&self) {
        self.processes().into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
    }

    /// Continues a stopped server.
    pub fn resume(&self) {
        self.processes().into_iter().for_each(|pid| signal(pid, Signal::SIGCONT));
    }

    /// The server and its children, the server first.
    fn processes(&self) -> Vec<i32> {
        let file = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        let server: i32 = file.lines().next().unwrap().trim().parse().unwrap();
        let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
        let children = children.unwrap_or_default();
        std::iter::once(server).chain(children.split_whitespace().flat_map(str::parse)).collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A process that ends the server and deletes its folder, also where the test was killed.
fn guard(folder: &Path) -> Child {
    let script = r#"
        read -r line
        if [ -f "$0/data/postmaster.pid" ]; then
            server=$(head -1 "$0/data/postmaster.pid")
            kill -9 "$server" $(cat "/proc/$server/task/$server/children" 2>/dev/null) 2>/dev/null
        fi
        sleep 0.1
        rm -rf "$0"
    "#;
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// A command as a user that Postgres accepts.
fn as_postgres(program: &Path) -> Command {
    if !Uid::effective().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command.current_dir("/");
    command
}

/// A program of Postgres: in the path, or in the folder of Debian's newest version.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn signal(pid: i32, signal: Signal) {
    // A process may have ended meanwhile.
    let _ = kill(Pid::from_raw(pid), signal);
}

fn is_alive(pid: i32) -> bool {
    // A process that has ended and that nobody has waited for is a zombie.
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}
