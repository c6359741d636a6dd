//! The kernel's table of listening sockets, and whose they are: by the links of `/proc/<pid>/fd`, as `ss -p` does it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listening {
    pub address: SocketAddr,
    pub inode: u64,
}

/// In the table's order.
pub(super) fn listening() -> Vec<Listening> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| File::open(table).ok())
        .flat_map(|file| listening_of(BufReader::new(file)))
        .collect()
}

/// The kernel writes the listening sockets first. A busy machine has a hundred thousand others, which are not read.
pub(super) fn listening_of(table: impl BufRead) -> Vec<Listening> {
    let lines = table.lines().skip(1).map_while(Result::ok);
    lines.map_while(|line| parse_line(&line)).collect()
}

/// None: not a listening socket.
fn parse_line(line: &str) -> Option<Listening> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    // TCP_LISTEN
    if *fields.get(3)? != "0A" {
        return None;
    }
    let ip = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(
            u32::from_str_radix(address, 16).ok()?.to_ne_bytes(),
        )),
        32 => {
            // Four words, each in the machine's order.
            let mut bytes = [0; 16];
            for (index, word) in bytes.chunks_exact_mut(4).enumerate() {
                let digits = address.get(index * 8..index * 8 + 8)?;
                word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
            }
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(Listening {
        address: SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?),
        inode: fields.get(9)?.parse().ok()?,
    })
}

pub(super) fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Descriptors and inodes of the sockets that a process has open. An error: this user may not see them, or it is gone.
pub(super) fn sockets_of(pid: u32) -> io::Result<impl Iterator<Item = (i32, u64)>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    Ok(entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        let descriptor = entry.file_name().to_str()?.parse().ok()?;
        Some((descriptor, inode.parse().ok()?))
    }))
}

/// Whether a process has a port open. An error: as above.
pub(super) fn has_open_port(pid: u32) -> io::Result<bool> {
    let listen: BTreeSet<u64> = listening().iter().map(|socket| socket.inode).collect();
    Ok(sockets_of(pid)?.any(|(_, inode)| listen.contains(&inode)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn reads_the_table_up_to_the_first_connection() {
        let table = "  sl  local_address ...\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 426 1 0 100 0 0 10 0\n\
            \x20  1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0  0  0 7 1 0\n\
            \x20  2: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 9 1 0\n\
            \x20  3: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 10 1 0\n";
        let found = listening_of(table.as_bytes());
        let shown: Vec<_> = found
            .iter()
            .map(|socket| (socket.address, socket.inode))
            .collect();
        assert_eq!(
            shown,
            [
                ("127.0.0.1:8080".parse().unwrap(), 426),
                ("[::1]:80".parse().unwrap(), 7)
            ]
        );
    }

    #[test]
    fn a_port_is_its_owners() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(has_open_port(std::process::id()).unwrap());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let of_child = has_open_port(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!of_child.unwrap());
        // Gone, which looks like one whose files may not be seen.
        assert!(has_open_port(child.id()).is_err());
        drop(listener);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Another kernel's table, or none.
        #[test]
        fn fuzz_tables_of_sockets(line in "[0-9A-Fa-f:é ]{0,80}|\\PC{0,60}", head in "[ ]*0: [0-9A-F]{8}:[0-9A-F]{4} 0:0 0A .{0,30}") {
            for table in [format!("sl\n{line}\n"), format!("sl\n{head}{line}\n")] {
                for socket in listening_of(table.as_bytes()) {
                    prop_assert!(table.contains(&socket.inode.to_string()), "{table}");
                }
            }
        }
    }
}
