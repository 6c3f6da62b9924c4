//! Unix sockets.

use std::{fs, io::ErrorKind, os::unix::net::UnixListener};

use octollm_http::{Arms, io::UnixSockets};
use tokio::task::yield_now;

use crate::arms::{Echo, worker};

#[tokio::test]
async fn calls_go_over_the_sockets_in_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = UnixSockets::new(directory.path());
    let builder = Arms::builder().connector(sockets.clone()).endpoint("worker", "http://worker");
    let arms = builder.build().unwrap();
    for _ in 0..2 {
        let server = tokio::spawn(worker().listen(sockets.listen("Worker").unwrap()).unwrap().run());
        for text in ["one", "two"] {
            let said = arms.call(Echo { text: text.into(), data: 0.into(), number: 0.0 }).await.unwrap();
            assert_eq!(said.text, text);
        }
        assert_eq!(arms.cards().await[0].endpoint.as_deref(), Some("http://worker"));
        server.abort();
        let _ = server.await;
        assert!(!directory.path().join("worker.sock").exists());
        yield_now().await;
    }
}

#[tokio::test]
async fn a_socket_is_replaced_only_if_nobody_listens_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = UnixSockets::new(directory.path());
    let file = directory.path().join("worker.sock");
    let other = UnixListener::bind(&file).unwrap();
    assert_eq!(sockets.listen("worker").unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(other);
    assert!(file.exists());
    let acceptor = sockets.listen("worker").unwrap();
    assert_eq!(sockets.listen("worker").unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(acceptor);
    fs::write(&file, "not a socket").unwrap();
    assert_eq!(sockets.listen("worker").unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(fs::read(&file).unwrap(), b"not a socket");
}

#[tokio::test]
async fn the_name_of_a_socket_does_not_lead_out_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = UnixSockets::new(directory.path().join("inner"));
    for name in ["../worker", "/worker", "worker:80", "me@worker", "[::1]", ""] {
        assert_eq!(sockets.listen(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
    }
    assert_eq!(sockets.listen("worker").unwrap_err().kind(), ErrorKind::NotFound);
}
