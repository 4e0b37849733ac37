//! An HTTP client that costs little, so that what is measured is the server: one connection, one request at a time.

use std::{fmt::Write as _, net::SocketAddr, time::Instant};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A kept connection.
pub(super) struct HttpClient {
    stream: TcpStream,
    request: String,
    answer: Vec<u8>,
}

impl HttpClient {
    pub(super) async fn connect(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, request: String::with_capacity(1024), answer: Vec::with_capacity(4096) })
    }

    /// Asks, and returns when the first byte of the answer came; the rest is read too.
    pub(super) async fn get(&mut self, path: &str) -> Result<Instant> {
        self.request.clear();
        write!(self.request, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        self.exchange().await
    }

    /// Sends a body.
    pub(super) async fn put(&mut self, path: &str, body: &str) -> Result<Instant> {
        self.request.clear();
        let length = body.len();
        write!(self.request, "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")?;
        self.exchange().await
    }

    async fn exchange(&mut self) -> Result<Instant> {
        self.stream.write_all(self.request.as_bytes()).await?;
        self.answer.clear();
        let mut first = None;
        while !is_complete(&self.answer)? {
            let read = self.stream.read_buf(&mut self.answer).await?;
            ensure!(read > 0, "the server closed the connection");
            first.get_or_insert_with(Instant::now);
        }
        first.context("an empty answer")
    }
}

/// Whether the answer is here with all of its body.
fn is_complete(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(false) };
    let head = std::str::from_utf8(&answer[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let length = fields.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Ok(answer.len() >= end + 4 + length.context("no length")?.1.parse::<usize>()?)
}
