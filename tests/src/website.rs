//! A device's own web server with fixed pages: enough HTTP/1.1 for a client that asks one thing at a time.
//!
//! API: [`Website::start`] serves until dropped, [`Website::asked`] counts what was asked of its pages,
//! [`Website::most_at_once`] how many questions it had to answer at the same time.

use crate::process::free_tcp_port;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a connection may stay open without a word.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that runs.
#[derive(Debug)]
pub struct Website {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pages: Vec<(String, String)>,
    stop: AtomicBool,
    asked: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Website {
    /// Serves these pages by path on a free port of `host`.
    pub fn start(host: Ipv4Addr, pages: &[(&str, &str)]) -> Result<Website> {
        let port = free_tcp_port(IpAddr::V4(host))?;
        let listener = TcpListener::bind((host, port)).context("listen for HTTP")?;
        let pages = pages.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        let shared = Arc::new(Shared {
            pages,
            stop: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&serving);
                // Ends with its connection, or after a while of silence.
                drop(std::thread::spawn(move || drop(shared.talk(stream))));
            }
        });
        Ok(Website { address: (host, port).into(), shared, accepting: Some(accepting) })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Questions for its pages so far; others are none.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// The most questions at the same time.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn talk(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut first = String::new();
            if reader.read_line(&mut first)? == 0 {
                return Ok(());
            }
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let answered = self.answer(&first, &mut reader, &mut writer);
            self.now.fetch_sub(1, Ordering::SeqCst);
            answered?;
        }
    }

    fn answer(&self, first: &str, reader: &mut impl BufRead, writer: &mut impl Write) -> std::io::Result<()> {
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && !line.trim().is_empty() {
            line.clear();
        }
        let path = first.split_whitespace().nth(1).unwrap_or_default();
        let page = self.pages.iter().find(|(known, _)| known == path).map(|(_, text)| text.as_str());
        self.asked.fetch_add(usize::from(page.is_some()), Ordering::SeqCst);
        let status = if page.is_some() { "200 OK" } else { "404 Not Found" };
        let text = page.unwrap_or_default();
        let length = text.len();
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n{text}"
        )?;
        writer.flush()
    }
}

impl Drop for Website {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}
