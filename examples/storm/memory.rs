//! The memory of a server for each connection and each request.

use std::{future::Future, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{Result, process::Process};

/// Streams of one HTTP/2 connection, at most.
const STREAMS: usize = 100;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Measures so many idle connections, and so many running requests.
pub(crate) async fn measure(connections: usize, requests: usize) -> Result<()> {
    each("a connection that has sent nothing", connections, connections, TcpStream::connect).await?;
    each("an idle connection, HTTP/1.1", connections, connections, idle_http1).await?;
    each("an idle connection, HTTP/2", connections, connections, idle_http2).await?;
    each("a running request and its connection, HTTP/1.1", requests, requests, running_http1).await?;
    each("a running request, HTTP/2", requests.div_ceil(STREAMS), requests, running_http2).await
}

/// Opens connections to a new server, and prints the memory that they add.
async fn each<F>(what: &str, connections: usize, units: usize, open: fn(SocketAddr) -> F) -> Result<()>
where
    F: Future<Output = std::io::Result<TcpStream>> + Send + 'static,
{
    let server = Process::start(&["serve"])?;
    let (address, sockets) = (server.address(), server.figures().sockets);
    // What is made with the first connections is there before.
    drop(opened(32, address, idle_http1).await?);
    drop(opened(32, address, idle_http2).await?);
    server.sockets_left(sockets).await;
    let before = server.figures();
    let open = opened(connections, address, open).await?;
    // The server goes on until it waits for its callers.
    sleep(Duration::from_secs(1)).await;
    let during = server.figures();
    drop(open);
    let bytes = during.resident.saturating_sub(before.resident) as f64 / units as f64;
    let (before, during) = (before.resident_mib(), during.resident_mib());
    println!("memory {what}: kib={:.1} number={units} resident_mib={before:.1}..{during:.1}", bytes / 1024.0);
    Ok(())
}

async fn opened<F>(number: usize, server: SocketAddr, open: fn(SocketAddr) -> F) -> Result<Vec<TcpStream>>
where
    F: Future<Output = std::io::Result<TcpStream>> + Send + 'static,
{
    let mut opening = JoinSet::new();
    let mut open_streams = Vec::with_capacity(number);
    for _ in 0..number {
        if opening.len() == 100
            && let Some(stream) = opening.join_next().await
        {
            open_streams.push(stream??);
        }
        opening.spawn(timeout(ANSWER_LIMIT, open(server)));
    }
    while let Some(stream) = opening.join_next().await {
        open_streams.push(stream??);
    }
    open_streams.into_iter().map(|stream| Ok(stream?)).collect()
}

async fn idle_http1(server: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: storm\r\n\r\n").await?;
    read_until(&mut stream, |answer| answer.ends_with(b"}")).await?;
    Ok(stream)
}

async fn idle_http2(server: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    let headers = head(1, b"\x82\x86\x04\x07/health\x01\x01x", true);
    stream.write_all(&[PREFACE, &headers].concat()).await?;
    read_until(&mut stream, |answer| answer.ends_with(b"}")).await?;
    Ok(stream)
}

async fn running_http1(server: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    let head =
        "POST /wait HTTP/1.1\r\nhost: storm\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

async fn running_http2(server: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    let mut bytes = PREFACE.to_vec();
    for number in 0..STREAMS as u32 {
        let id = 2 * number + 1;
        bytes.extend(head(id, b"\x83\x86\x04\x05/wait\x01\x01x\x0f\x10\x10application/json", false));
        bytes.extend(frame(0, 1, id, b"{}"));
    }
    stream.write_all(&bytes).await?;
    Ok(stream)
}

/// A frame of headers, which ends the request or not.
fn head(stream: u32, fields: &[u8], ends: bool) -> Vec<u8> {
    frame(1, if ends { 5 } else { 4 }, stream, fields)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn read_until(stream: &mut TcpStream, is_whole: fn(&[u8]) -> bool) -> std::io::Result<()> {
    let (mut answer, mut space) = (Vec::new(), [0; 1024]);
    while !is_whole(&answer) {
        match stream.read(&mut space).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&space[..count]),
        }
    }
    Ok(())
}
