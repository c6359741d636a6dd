//! Free ports that neither another test, another test process, nor the kernel's ephemeral range takes
//! meanwhile.
//!
//! A process locks one block of ports below the ephemeral range (32768) for as long as it lives and hands
//! them out in turn.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::fs::{FlockOperation, flock};

const FIRST: u16 = 10_000;
/// More than a process takes in the time that it takes a program to come back to its port: that port is free meanwhile.
const BLOCK: u16 = 1000;
const BLOCKS: u16 = 22; // up to 31999

struct Block {
    first: u16,
    next: AtomicU16,
    _lock: File,
}

static MINE: OnceLock<Block> = OnceLock::new();

/// A port on 127.0.0.1 that nothing is bound to, for TCP and UDP, and that no other caller gets soon.
pub fn free_port() -> u16 {
    let block = MINE.get_or_init(lock_a_block);
    for _ in 0..BLOCK {
        let port = block.first + block.next.fetch_add(1, Ordering::Relaxed) % BLOCK;
        if is_free(port) {
            return port;
        }
    }
    panic!("no free port in {}..{}", block.first, block.first + BLOCK)
}

fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

fn lock_a_block() -> Block {
    let uid = rustix::process::geteuid().as_raw();
    // Not TMPDIR: tests with different ones share the machine's ports all the same.
    let directory = Path::new("/tmp").join(format!("portreeve-test-ports-{uid}"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .expect("a directory for port locks");
    for index in 0..BLOCKS {
        let path = directory.join(index.to_string());
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .expect("a port lock file");
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Block {
                first: FIRST + index * BLOCK,
                next: AtomicU16::new(0),
                _lock: file,
            };
        }
    }
    panic!(
        "all {BLOCKS} blocks of test ports are taken: see {}",
        directory.display()
    )
}
