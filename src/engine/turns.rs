//! Few places to work in, for which clients take turns: one that asks for many waits for itself, and lets the others pass.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Who asks, where that is known; all others are one client.
type Client = Option<Arc<str>>;

/// So many places. Clones share them.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Who may wait at most.
    room: usize,
    waiting: usize,
    /// Those who wait, by client; the first client is the next.
    lines: VecDeque<(Client, VecDeque<oneshot::Sender<Place>>)>,
}

/// A place, which the next one gets when this is dropped.
#[derive(Debug)]
pub struct Place(Turns);

/// There is no place, and as many wait for one as may.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyWait;

impl Turns {
    pub fn new(places: usize, room: usize) -> Self {
        Turns(Arc::new(Mutex::new(State {
            free: places,
            room,
            waiting: 0,
            lines: VecDeque::new(),
        })))
    }

    /// Nothing is left half done under this lock, so a poisoned one is as good.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// As many wait as may. One of the client with the most of them has to go, where that is more than this client would have.
    pub async fn place(&self, client: Option<&Arc<str>>) -> Result<Place, TooManyWait> {
        let waits = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Place(self.clone()));
            }
            state.wait(client)?
        };
        waits.await.map_err(|_| TooManyWait)
    }
}

impl State {
    fn wait(&mut self, client: Option<&Arc<str>>) -> Result<oneshot::Receiver<Place>, TooManyWait> {
        if self.waiting >= self.room {
            self.forget_who_left();
        }
        let own = self.lines.iter().position(|(of, _)| of.as_ref() == client);
        if self.waiting >= self.room {
            let own = own.map_or(0, |at| self.lines[at].1.len());
            let longest = self.lines.iter_mut().max_by_key(|(_, line)| line.len());
            let (_, line) = longest.ok_or(TooManyWait)?;
            if line.len() <= own + 1 {
                return Err(TooManyWait);
            }
            line.pop_back();
            self.waiting -= 1;
        }
        let (gives, waits) = oneshot::channel();
        match own {
            Some(at) => self.lines[at].1.push_back(gives),
            None => (self.lines).push_back((client.cloned(), VecDeque::from([gives]))),
        }
        self.waiting += 1;
        Ok(waits)
    }

    fn forget_who_left(&mut self) {
        for (_, line) in &mut self.lines {
            line.retain(|gives| !gives.is_closed());
        }
        self.lines.retain(|(_, line)| !line.is_empty());
        self.waiting = self.lines.iter().map(|(_, line)| line.len()).sum();
    }

    /// Who gets a place that is free now; where nobody waits it stays free.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        while let Some((client, mut line)) = self.lines.pop_front() {
            let next = line.pop_front();
            if !line.is_empty() {
                self.lines.push_back((client, line));
            }
            if let Some(next) = next {
                self.waiting -= 1;
                if !next.is_closed() {
                    return Some(next);
                }
            }
        }
        self.free += 1;
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = self.0.state().next();
        if let Some(next) = next {
            // Where it is not waited for any more it is dropped here, and goes on to who is after that.
            let _ = next.send(Place(self.0.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Told = Result<Place, TooManyWait>;
    type Waits = Pin<Box<dyn Future<Output = Told>>>;

    /// What one that waits has been told by now.
    fn told(waits: &mut Waits) -> Option<Told> {
        match waits.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(told) => Some(told),
            Poll::Pending => None,
        }
    }

    /// One that waits, or what it is told at once.
    fn asks(turns: &Turns, client: &str) -> Result<Waits, Told> {
        let (turns, client) = (turns.clone(), Arc::from(client));
        let mut waits: Waits = Box::pin(async move { turns.place(Some(&client)).await });
        told(&mut waits).map_or(Ok(waits), Err)
    }

    #[test]
    fn clients_take_turns() {
        let turns = Turns::new(1, 10);
        let mut place = asks(&turns, "ann").err().expect("told").expect("a place");
        let asked = ["ann", "ann", "ann", "ben", "eve", "ben"];
        let mut waiting: Vec<_> = asked
            .into_iter()
            .map(|client| (client, asks(&turns, client).expect("it waits")))
            .collect();
        let mut served = Vec::new();
        while !waiting.is_empty() {
            drop(place);
            let all = waiting.iter_mut().enumerate();
            let mut all = all.filter_map(|(at, (_, waits))| Some((at, told(waits)?)));
            let (at, got) = all.next().expect("one has it now");
            assert!(all.next().is_none());
            place = got.expect("a place");
            served.push(waiting.remove(at).0);
        }
        assert_eq!(served, ["ann", "ben", "eve", "ann", "ben", "ann"]);
    }

    #[test]
    fn one_that_has_many_waiting_makes_room() {
        let turns = Turns::new(1, 3);
        let place = asks(&turns, "ann").err().expect("told");
        let mut anns: Vec<_> = (0..3)
            .map(|_| asks(&turns, "ann").expect("it waits"))
            .collect();
        assert_eq!(
            asks(&turns, "ann").err().expect("told").map(drop),
            Err(TooManyWait)
        );
        let mut ben = asks(&turns, "ben").expect("it waits");
        let last = told(&mut anns.pop().expect("three"));
        assert_eq!(last.expect("told").map(drop), Err(TooManyWait));
        // Each has as much as another would have.
        assert!(asks(&turns, "ben").is_err());
        drop(anns);
        let eve = asks(&turns, "eve").expect("who left has made room");
        drop(place);
        let ben = told(&mut ben).expect("told").expect("a place");
        drop((ben, eve));
        assert_eq!(turns.state().free, 1);
    }

    proptest! {
        /// Asked, left or given back in any order: there are never more places than there are, nobody waits where one is free, and in
        /// the end all are free.
        #[test]
        fn places_are_never_lost(steps in prop::collection::vec((0..3_u8, 0..4_usize), 0..80), places in 1..3_usize) {
            let turns = Turns::new(places, 6);
            let (mut held, mut waiting): (Vec<Place>, Vec<Waits>) = Default::default();
            for (step, which) in steps {
                match step {
                    0 => match asks(&turns, ["ann", "ben", "eve", "joe"][which]) {
                        Ok(waits) => waiting.push(waits),
                        Err(Ok(place)) => held.push(place),
                        Err(Err(TooManyWait)) => (),
                    },
                    1 if which < held.len() => drop(held.remove(which)),
                    2 if which < waiting.len() => drop(waiting.remove(which)),
                    _ => (),
                }
                let before = waiting.len();
                if which % 2 == 0 {
                    waiting.retain_mut(|waits| told(waits).map(|told| held.extend(told)).is_none());
                    prop_assert!(held.len() + turns.state().free == places);
                    prop_assert!(waiting.is_empty() || held.len() == places, "{} wait", before);
                }
                prop_assert!(turns.state().waiting <= 6);
            }
            drop((held, waiting));
            prop_assert_eq!(turns.state().free, places);
        }
    }
}
