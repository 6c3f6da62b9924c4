//! A real server behind a proxy that breaks connections, over sockets of the system and both versions of HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm_core::{arm::arm_fn, error::ErrorKind};
use octollm_http::{
    Server,
    client::{Arms, Protocol},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use crate::peer::{Check, Verdict, check, short, until};

const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// What the proxy does with a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Closes it at once.
    Drop,
    /// Passes so many bytes of the answer, and closes both sides.
    Cut(usize),
    /// Passes so many bytes of the answer, and resets the client's side.
    Reset(usize),
    /// Passes so many bytes of the answer, and then nothing. Both sides stay open.
    Stall(usize),
    /// Passes everything, in small pieces with 2 ms between them.
    Slow,
    /// Passes what the client sends, and not its answer, whose end it does not see either.
    HalfOpen,
}

struct Proxy {
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    open: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, open) = (Arc::new(Mutex::new(Mode::Pass)), Arc::new(AtomicUsize::new(0)));
        let state = (mode.clone(), open.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (mode, open) = (*state.0.lock().unwrap(), state.1.clone());
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = pass(client, to, mode).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, mode, open }
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }
}

async fn pass(mut client: TcpStream, to: SocketAddr, mode: Mode) -> std::io::Result<()> {
    if mode == Mode::Drop {
        return Ok(());
    }
    let mut server = TcpStream::connect(to).await?;
    let (mut asked, mut answered) = ([0; 4096], [0; 4096]);
    let mut left = match mode {
        Mode::Cut(bytes) | Mode::Reset(bytes) | Mode::Stall(bytes) => bytes,
        Mode::HalfOpen => 0,
        _ => usize::MAX,
    };
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read? {
                0 => return Ok(()),
                count => server.write_all(&asked[..count]).await?,
            },
            read = server.read(&mut answered) => {
                let count = read?.min(left);
                left -= count;
                if mode == Mode::Slow {
                    for piece in answered[..count].chunks(64) {
                        client.write_all(piece).await?;
                        sleep(Duration::from_millis(2)).await;
                    }
                } else {
                    client.write_all(&answered[..count]).await?;
                }
                if left > 0 && count > 0 {
                    continue;
                }
                if matches!(mode, Mode::Reset(_)) {
                    client.set_zero_linger()?;
                }
                if matches!(mode, Mode::Stall(_) | Mode::HalfOpen) {
                    // Until the client leaves.
                    while client.read(&mut asked).await? > 0 {}
                }
                return Ok(());
            }
        }
    }
}

/// A server, the number of calls that it ran, a proxy before it and a client.
async fn system(protocol: Protocol) -> (Proxy, Arc<AtomicUsize>, Arms) {
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = ran.clone();
    let arm = arm_fn(move |_: Check, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Verdict { is_valid: true }))
    });
    let server = Server::new("judge").arm(arm).bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.url().trim_start_matches("http://").parse().unwrap()).await;
    tokio::spawn(server.run());
    let arms = short(Arms::builder())
        .protocol(protocol)
        .endpoint_serving::<Check>("judge", format!("http://{}", proxy.address))
        .build()
        .unwrap();
    (proxy, ran, arms)
}

#[tokio::test]
async fn fault_07_an_answer_cut_at_any_byte_is_whole_or_an_error() {
    for protocol in BOTH {
        for is_reset in [false, true] {
            let mut whole = 0;
            for bytes in (0..).step_by(13).take_while(|bytes| *bytes < 2000) {
                let (proxy, ran, arms) = system(protocol).await;
                proxy.set(if is_reset { Mode::Reset(bytes) } else { Mode::Cut(bytes) });
                match arms.call(check()).await {
                    Ok(verdict) => {
                        assert!(verdict.is_valid);
                        whole += 1;
                        // The rest would cut the next answer over the same connection.
                        drop(arms);
                        if whole > 2 {
                            break;
                        }
                        continue;
                    }
                    Err(error) => {
                        let kinds = [ErrorKind::ConnectionLost, ErrorKind::Unreachable];
                        assert!(kinds.contains(&error.kind()), "{protocol:?} {bytes}: {error}");
                        let has_run = ran.load(Ordering::SeqCst) > 0;
                        assert!(error.may_have_executed() || !has_run, "{protocol:?} {bytes}: {error}");
                    }
                }
                assert!(ran.load(Ordering::SeqCst) <= 1, "{protocol:?} {bytes}: it ran twice");
                proxy.set(Mode::Pass);
                arms.call(check()).await.unwrap_or_else(|error| panic!("{protocol:?} {bytes}: {error}"));
            }
            assert!(whole > 2, "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn stalls_and_half_open_connections_end_within_the_limits() {
    for protocol in BOTH {
        for mode in [Mode::Stall(0), Mode::Stall(60), Mode::HalfOpen, Mode::Drop] {
            let (proxy, ran, arms) = system(protocol).await;
            proxy.set(mode);
            let began = Instant::now();
            let error = arms.call(check()).await.unwrap_err();
            assert!(began.elapsed() < Duration::from_secs(2), "{protocol:?} {mode:?}");
            let kinds = [ErrorKind::ConnectionLost, ErrorKind::Unreachable, ErrorKind::Timeout];
            assert!(kinds.contains(&error.kind()), "{protocol:?} {mode:?}: {error}");
            assert!(error.may_have_executed() || ran.load(Ordering::SeqCst) == 0, "{protocol:?} {mode:?}");
            proxy.set(Mode::Pass);
            // Over HTTP/2 a stream was reset, and its connection is still stalled until it ends.
            drop(arms);
            until(|| proxy.open.load(Ordering::SeqCst) == 0).await;
        }
    }
}

#[tokio::test]
async fn a_slow_line_is_no_fault() {
    for protocol in BOTH {
        let (proxy, ran, arms) = system(protocol).await;
        proxy.set(Mode::Slow);
        arms.context().call_all((0..10).map(|_| check())).at_once(10).await.unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 10);
    }
}
