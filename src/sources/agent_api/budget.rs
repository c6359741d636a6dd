//! Who may hold a long poll: places among the connections that Consul grants one client.
//!
//! Over HTTP/1 every long poll holds a connection, and beyond `limits.http_max_conns_per_client` (200, per address of the
//! client, unix socket included) Consul resets connections: all of them, those of other programs on the machine too. So
//! places are counted. A watch without a place polls in turns at an interval that is stated in a problem. Over HTTP/2
//! polls share connections and there is a place for everyone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::{ApiClient, CALL_LANE};

/// The leave to make one request.
#[derive(Debug)]
pub(in crate::sources) struct Pass {
    pub(in crate::sources) lane: usize,
    pub(in crate::sources) may_block: bool,
    /// How long to rest after it; zero for a watch that blocks.
    pub(in crate::sources) rest: Duration,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Pass {
    /// For a watch that is always granted: there is one of its kind.
    pub(in crate::sources) fn granted() -> Self {
        Self {
            lane: CALL_LANE,
            may_block: true,
            rest: Duration::ZERO,
            _permit: None,
        }
    }
}

#[derive(Debug)]
pub(in crate::sources) struct Budget {
    client: ApiClient,
    first_lane: usize,
    limit: usize,
    shortest_turn: Duration,
    seats: Mutex<Seats>,
    waiting: AtomicUsize,
    here: Arc<Queues>,
    /// Of other datacenters or regions, by name: one that hangs holds each of its requests for as long as it takes, and is to
    /// hold nobody else's.
    elsewhere: Mutex<BTreeMap<Arc<str>, Weak<Queues>>>,
}

/// Requests that are under way at once.
#[derive(Debug)]
struct Queues {
    turns: Arc<Semaphore>,
    first_reads: Arc<Semaphore>,
}

impl Queues {
    fn of(turns: usize) -> Arc<Self> {
        Arc::new(Self {
            turns: Arc::new(Semaphore::new(turns)),
            first_reads: Arc::new(Semaphore::new(FIRST_READS_IN_FLIGHT)),
        })
    }
}

/// Places by number. The lowest free one is taken first: low numbers share connections.
#[derive(Debug, Default)]
struct Seats {
    /// Above all that were ever taken.
    next: usize,
    /// Below it, not taken.
    free: BTreeSet<usize>,
}

impl Seats {
    fn taken(&self) -> usize {
        self.next - self.free.len()
    }

    fn take(&mut self) -> usize {
        self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn give_back(&mut self, seat: usize) {
        self.free.insert(seat);
    }
}

/// A watch's own view of the budget; gives its place back when dropped.
#[derive(Debug)]
pub(in crate::sources) struct Claim {
    budget: Arc<Budget>,
    seat: Option<usize>,
    waits: bool,
    queues: Arc<Queues>,
}

impl Budget {
    pub(in crate::sources) fn new(client: ApiClient, limit: usize, shortest_turn: Duration) -> Arc<Self> {
        Arc::new(Self {
            first_lane: client.allot_lanes(),
            client,
            limit,
            shortest_turn,
            seats: Mutex::new(Seats::default()),
            waiting: AtomicUsize::new(0),
            here: Queues::of(TURNS_IN_FLIGHT),
            elsewhere: Mutex::default(),
        })
    }

    pub(in crate::sources) fn claim(self: &Arc<Self>) -> Claim {
        self.claim_of(self.here.clone())
    }

    /// For what this datacenter or region answers.
    pub(in crate::sources) fn claim_in(self: &Arc<Self>, place: &Arc<str>) -> Claim {
        let mut places = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = places.get(place).and_then(Weak::upgrade).unwrap_or_else(|| {
            places.retain(|_, queues| queues.strong_count() > 0);
            let queues = Queues::of(TURNS_ELSEWHERE);
            places.insert(place.clone(), Arc::downgrade(&queues));
            queues
        });
        self.claim_of(queues)
    }

    fn claim_of(self: &Arc<Self>, queues: Arc<Queues>) -> Claim {
        Claim {
            budget: self.clone(),
            seat: None,
            waits: false,
            queues,
        }
    }

    pub(in crate::sources) fn limit(&self) -> usize {
        self.limit
    }

    /// How often a watch without a place looks: at most 200 looks a second for all of them together.
    fn turn(&self) -> Duration {
        let waiting = u32::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        self.shortest_turn
            .max(Duration::from_millis(5).saturating_mul(waiting))
    }

    fn take_seat(&self) -> Option<usize> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let may_take = seats.taken() < self.limit || self.client.is_multiplexed();
        may_take.then(|| seats.take())
    }
}

impl Claim {
    /// How often this watch looks while it has no place.
    pub(in crate::sources) fn turn(&self) -> Option<Duration> {
        self.waits.then(|| self.budget.turn())
    }

    pub(in crate::sources) async fn admit(&mut self, first: bool) -> Pass {
        if self.seat.is_none() {
            self.seat = self.budget.take_seat();
            self.set_waiting(self.seat.is_none());
        }
        // No semaphore is ever closed; a pass without a permit would merely be unbounded.
        match self.seat {
            Some(seat) => {
                let gate = first.then(|| self.queues.first_reads.clone().acquire_owned());
                let permit = match gate {
                    Some(gate) => gate.await.ok(),
                    None => None,
                };
                Pass {
                    lane: self.budget.first_lane + seat / self.budget.client.polls_per_lane(),
                    may_block: true,
                    rest: Duration::ZERO,
                    _permit: permit,
                }
            }
            None => {
                let permit = self.queues.turns.clone().acquire_owned().await.ok();
                Pass {
                    lane: CALL_LANE,
                    may_block: false,
                    rest: self.budget.turn(),
                    _permit: permit,
                }
            }
        }
    }

    fn set_waiting(&mut self, waits: bool) {
        match (self.waits, waits) {
            (false, true) => self.budget.waiting.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.budget.waiting.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        self.waits = waits;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.set_waiting(false);
        if let Some(seat) = self.seat {
            self.budget
                .seats
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .give_back(seat);
        }
    }
}

/// Connections for those without a place; for each other datacenter a few of its own.
const TURNS_IN_FLIGHT: usize = 6;
const TURNS_ELSEWHERE: usize = 2;

/// First reads at once: a start with 10,000 services must not look like an attack.
const FIRST_READS_IN_FLIGHT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::agent_api::{ApiSettings, Product};

    #[test]
    fn the_lowest_free_place_is_taken_first() {
        let mut seats = Seats::default();
        assert_eq!([(); 4].map(|()| seats.take()), [0, 1, 2, 3]);
        seats.give_back(2);
        seats.give_back(0);
        assert_eq!(seats.taken(), 2);
        assert_eq!([(); 3].map(|()| seats.take()), [0, 2, 4]);
        assert_eq!(seats.taken(), 5);
    }

    #[tokio::test]
    async fn places_run_out_are_stated_and_come_back() {
        let client = ApiClient::new(&ApiSettings::of(Product::Consul)).unwrap();
        let budget = Budget::new(client, 2, Duration::from_secs(10));
        let (mut a, mut b, mut c) = (budget.claim(), budget.claim(), budget.claim());
        assert!(a.admit(true).await.may_block && b.admit(true).await.may_block);
        let pass = c.admit(true).await;
        assert!(!pass.may_block);
        assert_eq!(
            (pass.rest, c.turn()),
            (Duration::from_secs(10), Some(Duration::from_secs(10)))
        );
        drop(pass);
        drop(a);
        assert!(c.admit(false).await.may_block);
        assert_eq!(c.turn(), None);
        assert_eq!(budget.waiting.load(Ordering::Relaxed), 0);
    }

    /// Consul's services and its mesh ask through one client, and so do Nomad's services and variables.
    #[tokio::test]
    async fn watches_of_different_budgets_share_no_pool_of_connections() {
        let client = ApiClient::new(&ApiSettings::of(Product::Nomad)).unwrap();
        let turn = Duration::from_secs(10);
        let (services, variables) = (
            Budget::new(client.clone(), 70, turn),
            Budget::new(client, 15, turn),
        );
        let mut lanes = BTreeSet::from([CALL_LANE]);
        let mut claims = Vec::new();
        for (budget, watches) in [(&services, 70), (&variables, 15)] {
            for _ in 0..watches {
                let mut claim = budget.claim();
                let pass = claim.admit(false).await;
                assert!(pass.may_block && lanes.insert(pass.lane), "lane {}", pass.lane);
                claims.push(claim);
            }
        }
    }

    /// Claims that found no place, each with the moment of its next look. A clock of the test's own: whoever looks comes
    /// again when the rest is over that it was told.
    struct Queue {
        budget: Arc<Budget>,
        seated: Vec<Claim>,
        waiting: Vec<Claim>,
        due: BTreeSet<(Duration, usize)>,
    }

    impl Queue {
        const SEATS: usize = 3;

        async fn of(waiting: usize) -> Queue {
            let client = ApiClient::new(&ApiSettings::of(Product::Consul)).unwrap();
            let budget = Budget::new(client, Self::SEATS, Duration::from_secs(10));
            let mut seated: Vec<Claim> = (0..Self::SEATS).map(|_| budget.claim()).collect();
            for claim in &mut seated {
                assert!(claim.admit(true).await.may_block);
            }
            Queue {
                waiting: (0..waiting).map(|_| budget.claim()).collect(),
                // Ones that began at one moment, as they do at the agent's start.
                due: (0..waiting).map(|at| (Duration::ZERO, at)).collect(),
                budget,
                seated,
            }
        }

        /// All looks before that moment, counted.
        async fn until(&mut self, end: Duration) -> usize {
            let mut looks = 0;
            while let Some((now, at)) = self.due.first().copied().filter(|(now, _)| *now < end) {
                self.due.remove(&(now, at));
                let pass = self.waiting[at].admit(false).await;
                assert!(!pass.may_block, "there is no place");
                self.due.insert((now + pass.rest, at));
                looks += 1;
            }
            looks
        }
    }

    #[tokio::test]
    async fn all_without_a_place_look_200_times_a_second_together_however_many_they_are() {
        let span = Duration::from_secs(600);
        for (waiting, turn) in [
            (1, 10_000),
            (1_999, 10_000),
            (2_000, 10_000),
            (2_001, 10_005),
            (4_850, 24_250),
            (20_000, 100_000),
        ] {
            let turn = Duration::from_millis(turn);
            let mut queue = Queue::of(waiting).await;
            // Whoever came early saw fewer before it; by then each has looked when all are there.
            queue.until(turn + turn).await;
            assert_eq!(queue.waiting[0].turn(), Some(turn));
            let looks = queue.until(turn + turn + span).await;
            let at_most = 200.0 * span.as_secs_f64();
            assert!(looks as f64 <= at_most + waiting as f64, "{waiting}: {looks}");
            // And no slower than that needs: each as often as its turn comes.
            let turns = span.as_secs_f64() / turn.as_secs_f64();
            assert!(
                looks as f64 >= (turns - 1.0) * waiting as f64,
                "{waiting}: {looks}"
            );
        }
    }

    #[tokio::test]
    async fn who_leaves_makes_the_turns_of_the_others_shorter() {
        let mut queue = Queue::of(6_000).await;
        queue.until(Duration::from_secs(60)).await;
        let turn = |queue: &Queue| queue.waiting[0].turn();
        assert_eq!(turn(&queue), Some(Duration::from_secs(30)));
        queue.waiting.truncate(3_000);
        assert_eq!(turn(&queue), Some(Duration::from_secs(15)));
        // A place that is free goes to whoever looks next, who waits no more.
        queue.seated.pop();
        assert!(queue.waiting[2_999].admit(false).await.may_block);
        assert_eq!(
            (turn(&queue), queue.waiting[2_999].turn()),
            (Some(Duration::from_millis(14_995)), None)
        );
        queue.waiting.clear();
        assert_eq!(queue.budget.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_datacenter_that_hangs_holds_nobody_of_another() {
        let client = ApiClient::new(&ApiSettings::of(Product::Consul)).unwrap();
        for (limit, held) in [(0, TURNS_ELSEWHERE), (200, FIRST_READS_IN_FLIGHT)] {
            let budget = Budget::new(client.clone(), limit, Duration::from_secs(10));
            let mut passes = Vec::new();
            for _ in 0..held {
                let mut claim = budget.claim_in(&"dc2".into());
                passes.push((claim.admit(true).await, claim));
            }
            let mut next = budget.claim_in(&"dc2".into());
            let mut next = std::pin::pin!(next.admit(true));
            tokio::select! {
                biased;
                _ = &mut next => panic!("one more than may hang at once"),
                () = std::future::ready(()) => {}
            }
            for mut other in [budget.claim(), budget.claim_in(&"dc3".into())] {
                assert_eq!(other.admit(true).await.may_block, limit > 0);
            }
        }
    }

    #[tokio::test]
    async fn few_of_those_without_a_place_look_at_one_moment() {
        let mut queue = Queue::of(TURNS_IN_FLIGHT + 1).await;
        let (last, others) = queue.waiting.split_last_mut().unwrap();
        let mut passes = Vec::new();
        for claim in others {
            passes.push(claim.admit(false).await);
        }
        let mut asked = std::pin::pin!(last.admit(false));
        tokio::select! {
            biased;
            _ = &mut asked => panic!("one more than there are connections for"),
            () = std::future::ready(()) => {}
        }
        passes.pop();
        assert!(!asked.await.may_block);
    }
}
