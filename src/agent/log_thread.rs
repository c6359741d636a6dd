//! Lines of the log go out on a thread of their own: whoever reads them and hangs, with a full pipe between, must not
//! hang a gateway. Beyond what is kept for it lines are lost, and their number is told once it reads again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// About a megabyte.
const LINES: usize = 4096;

/// What a way out waits for a reader that hangs.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u32 = 50;

enum Order {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// One write is one line.
#[derive(Clone)]
pub struct LogThread {
    orders: SyncSender<Order>,
    lost: Arc<AtomicU64>,
}

impl LogThread {
    /// `told` is the line that stands for so many that are lost.
    pub fn start(
        out: impl Write + Send + 'static,
        told: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let (orders, received) = sync_channel(LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_out(&received, &counted, told, out))?;
        Ok(Self { orders, lost })
    }

    /// Until all lines so far are out, or nobody takes them.
    pub fn wait(&self) {
        let (done, is_done) = sync_channel(1);
        let mut order = Order::Flush(done);
        for _ in 0..TRIES {
            match self.orders.try_send(order) {
                Ok(()) => {
                    let _ = is_done.recv_timeout(PATIENCE);
                    return;
                }
                Err(TrySendError::Full(back)) => order = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(PATIENCE / TRIES);
        }
    }
}

/// However a run ends, what it said last is waited for.
pub struct UntilOut(pub LogThread);

impl Drop for UntilOut {
    fn drop(&mut self) {
        self.0.wait();
    }
}

impl Write for LogThread {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.orders.try_send(Order::Line(line.to_vec())) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A full disk or a closed pipe is no reason to end a gateway.
fn write_out(orders: &Receiver<Order>, lost: &AtomicU64, told: impl Fn(u64) -> String, mut out: impl Write) {
    for order in orders {
        let done = match order {
            Order::Line(line) => {
                let _ = out.write_all(&line).and_then(|()| out.flush());
                None
            }
            Order::Flush(done) => Some(done),
        };
        let number = lost.swap(0, Ordering::Relaxed);
        if number > 0 {
            let _ = out.write_all(told(number).as_bytes()).and_then(|()| out.flush());
        }
        if let Some(done) = done {
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes nothing until it is let.
    struct Reader {
        gate: Receiver<()>,
        read: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.gate.recv();
            self.read.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whoever_reads_the_log_and_hangs_holds_nothing_up() {
        let (open, gate) = sync_channel(0);
        let read = Arc::new(Mutex::new(Vec::new()));
        let reader = Reader {
            gate,
            read: read.clone(),
        };
        let mut log = LogThread::start(reader, |lost| format!("==> {lost} lines are lost here\n")).unwrap();
        for number in 0..2 * LINES {
            // On the thread of the test: it would stand here for ever.
            log.write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        // It reads again.
        drop(open);
        while !String::from_utf8_lossy(&read.lock().unwrap()).contains("are lost here") {
            std::thread::yield_now();
        }
        log.write_all(b"the last\n").unwrap();
        log.wait();
        let read = String::from_utf8(read.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = read.lines().collect();
        assert_eq!(lines[0], "line 0");
        assert_eq!(lines.last(), Some(&"the last"));
        let whole = lines.iter().filter(|line| line.starts_with("line ")).count();
        let lost: usize = lines
            .iter()
            .filter_map(|line| {
                line.strip_prefix("==> ")?
                    .split(' ')
                    .next()?
                    .parse::<usize>()
                    .ok()
            })
            .sum();
        assert_eq!(whole + lost, 2 * LINES);
        assert!((LINES..LINES + 2).contains(&whole), "{whole}");
    }
}
