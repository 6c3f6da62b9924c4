//! Connections that send too little.

use std::{
    fmt,
    future::pending,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedWriteHalf},
    task::JoinSet,
    time::{Instant, sleep},
};

/// What a connection sends.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Silent,
    Head,
    Body,
    Preface,
    Frames,
}

const KINDS: [Kind; 5] = [Kind::Silent, Kind::Head, Kind::Body, Kind::Preface, Kind::Frames];
/// Time between two bytes.
const PAUSE: Duration = Duration::from_secs(1);
/// Beyond the limit of the server, on a busy machine.
const LENIENCY: Duration = Duration::from_secs(5);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The connections of one kind so far.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    opened: u64,
    refused: u64,
    longest: Duration,
}

/// Slow connections, which are opened again when they are closed.
pub(crate) struct Lorises {
    tasks: JoinSet<()>,
    counts: Arc<[Mutex<Counts>; KINDS.len()]>,
}

/// What has become of the connections of one kind.
pub(crate) struct Attacked {
    kind: Kind,
    counts: Counts,
}

impl Lorises {
    pub(crate) fn start(server: SocketAddr, connections: usize) -> Self {
        let counts: Arc<[Mutex<Counts>; KINDS.len()]> = Arc::default();
        let mut tasks = JoinSet::new();
        for number in 0..connections {
            let counts = counts.clone();
            tasks.spawn(async move {
                let place = number % KINDS.len();
                loop {
                    attack(server, KINDS[place], &counts[place]).await;
                }
            });
        }
        Self { tasks, counts }
    }

    /// Closes all connections.
    pub(crate) async fn stop(mut self) -> Vec<Attacked> {
        self.tasks.shutdown().await;
        let read = |(kind, counts): (Kind, &Mutex<Counts>)| Attacked {
            kind,
            counts: *counts.lock().unwrap_or_else(PoisonError::into_inner),
        };
        KINDS.into_iter().zip(self.counts.iter()).map(read).collect()
    }
}

/// Opens a connection, and sends until the server closes it.
async fn attack(server: SocketAddr, kind: Kind, counts: &Mutex<Counts>) {
    let count = |change: fn(&mut Counts)| change(&mut counts.lock().unwrap_or_else(PoisonError::into_inner));
    let Ok(stream) = TcpStream::connect(server).await else {
        count(|counts| counts.refused += 1);
        return sleep(Duration::from_millis(100)).await;
    };
    count(|counts| counts.opened += 1);
    let _open = Open { since: Instant::now(), counts };
    let (mut answers, mut requests) = stream.into_split();
    let closed = async {
        let mut space = [0; 1024];
        while answers.read(&mut space).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! {
        () = closed => {}
        () = kind.send(&mut requests) => {}
    }
}

/// Records how long a connection was open.
struct Open<'c> {
    since: Instant,
    counts: &'c Mutex<Counts>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.longest = counts.longest.max(self.since.elapsed());
    }
}

impl Kind {
    /// What is sent at once, and what follows byte by byte, if anything does.
    fn bytes(self) -> (Vec<u8>, Option<&'static [u8]>) {
        match self {
            Self::Silent => (Vec::new(), None),
            Self::Head => (Vec::new(), Some(b"POST /check HTTP/1.1\r\nhost: storm\r\nx-slow: ")),
            Self::Body => {
                let head = "POST /check HTTP/1.1\r\nhost: storm\r\ncontent-type: application/json\r\n\
                            content-length: 1000000\r\n\r\n";
                (head.into(), Some(b"{\"text\":\""))
            }
            // The last byte never comes.
            Self::Preface => (PREFACE[..PREFACE.len() - 1].into(), None),
            // Settings, and the beginning of a frame of headers.
            Self::Frames => {
                let (settings, headers) = (b"\0\0\0\x04\0\0\0\0\0", b"\0\x40\0\x01\x04\0\0\0\x01\x82\x86");
                ([PREFACE, settings, headers].concat(), None)
            }
        }
    }

    /// Sends until the connection fails, or never ends.
    async fn send(self, to: &mut OwnedWriteHalf) {
        let (first, then) = self.bytes();
        if to.write_all(&first).await.is_err() {
            return;
        }
        let Some(then) = then else { return pending().await };
        for byte in then.iter().copied().chain(std::iter::repeat(b'a')) {
            if to.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    /// The longest time that a server with default limits leaves such a connection open.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Silent | Self::Head | Self::Preface => 10,
            // The whole body, or a connection without streams.
            Self::Body | Self::Frames => 30,
        })
    }
}

impl Attacked {
    pub(crate) fn is_late(&self) -> bool {
        self.counts.longest > self.kind.limit() + LENIENCY
    }
}

impl fmt::Display for Attacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, Counts { opened, refused, longest }) = (format!("{:?}", self.kind), self.counts);
        let (longest, limit) = (longest.as_secs_f64(), self.kind.limit().as_secs());
        let kind = kind.to_lowercase();
        write!(f, "loris={kind} opened={opened} refused={refused} longest_s={longest:.1} limit_s={limit}")
    }
}
