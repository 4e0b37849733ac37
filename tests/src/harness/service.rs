//! A small web service that tests check, kill and count.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A web service that answers each request with its name, until dropped.
#[derive(Debug)]
pub struct TestService {
    /// Where it listens.
    pub address: SocketAddr,
    requests: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl TestService {
    /// Starts it on a free port.
    pub async fn start(name: &str) -> Result<Self> {
        Self::start_at(name, "127.0.0.1:0".parse()?).await
    }

    /// Starts it at an address.
    pub async fn start_at(name: &str, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(serve(listener, name.to_owned(), requests.clone()));
        Ok(Self { address, requests, task })
    }

    /// Ends it at once, connections and all; its address stays known.
    pub fn kill(&mut self) {
        self.task.abort();
    }

    /// How many requests it has answered.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for TestService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, name: String, requests: Arc<AtomicU64>) {
    // The connections go with the listener: aborting the task is this service's kill -9.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                connections.spawn(answer(stream, name.clone(), requests.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, name: String, requests: Arc<AtomicU64>) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    let mut held = Vec::new();
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        held.extend_from_slice(&buffer[..read]);
        while let Some(end) = held.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            held.drain(..end + 4);
            requests.fetch_add(1, Ordering::Relaxed);
            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            stream.write_all(response.as_bytes()).await?;
        }
    }
}
