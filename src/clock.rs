//! The only place that knows what time it is.
//!
//! Everything else is handed a [`Timestamp`] or a [`Clock`]. Production runs on the system clock;
//! tests and the sandbox run on a manual one that moves only when told, so that a month passes in
//! a millisecond and nothing ever sleeps on the wall clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch;
use utoipa::ToSchema;

/// A moment in UTC, in whole milliseconds since the Unix epoch; RFC 3339 on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-12-01T00:00:00Z",
    description = "A moment: RFC 3339")]
pub struct Timestamp(i64);

/// What [`Timestamp`] can hold: jiff's range, years -9999 to 9999, in milliseconds.
const MAX_MS: i64 = 253_402_207_200_000;

impl Timestamp {
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// From whole seconds, as Stripe writes its times.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    pub const fn ms(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` until this moment; zero if `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// As jiff's type, for calendar arithmetic. Values outside jiff's range are clamped to it.
    pub fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0.clamp(-MAX_MS, MAX_MS))
            .expect("clamped into jiff's range")
    }

    pub fn from_jiff(timestamp: jiff::Timestamp) -> Self {
        Self(timestamp.as_millisecond())
    }

    /// Midnight (00:00 UTC) of this moment's day.
    #[must_use]
    pub fn start_of_day(self) -> Self {
        const DAY_MS: i64 = 86_400_000;
        Self(self.0.div_euclid(DAY_MS) * DAY_MS)
    }
}

/// RFC 3339 in UTC, with milliseconds only where there are any.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_jiff(), f)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>().map(Self::from_jiff)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Tells the time and waits for it. Cloning is cheap; clones share one clock.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    /// Ahead of the system clock by this much.
    Ahead(watch::Sender<Duration>),
    Manual(watch::Sender<Timestamp>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that runs like the machine's and can be moved ahead of it.
    pub fn ahead() -> Self {
        Self(Source::Ahead(watch::Sender::new(Duration::ZERO)))
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it.
    pub fn manual(start: Timestamp) -> Self {
        Self(Source::Manual(watch::Sender::new(start)))
    }

    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => system_now(),
            Source::Ahead(by) => system_now().plus(*by.borrow()),
            Source::Manual(now) => *now.borrow(),
        }
    }

    /// Returns once the clock shows `deadline` or later.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        /// The system clock may be set while we sleep, so long waits look at it again this often.
        const RECHECK: Duration = Duration::from_secs(30);
        // The senders live in `self`, so none of these channels closes while we wait.
        match &self.0 {
            Source::System => {
                while self.now() < deadline {
                    tokio::time::sleep(deadline.since(self.now()).min(RECHECK)).await;
                }
            }
            Source::Ahead(by) => {
                let mut by = by.subscribe();
                while self.now() < deadline {
                    let left = deadline.since(self.now()).min(RECHECK);
                    let _ = tokio::time::timeout(left, by.changed()).await;
                }
            }
            Source::Manual(now) => {
                let _ = now.subscribe().wait_for(|now| *now >= deadline).await;
            }
        }
    }

    /// Returns once `duration` has passed on this clock.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now().plus(duration)).await;
    }

    /// Moves the clock forward and answers the new time; `None` on the system clock.
    pub fn advance(&self, by: Duration) -> Option<Timestamp> {
        match &self.0 {
            Source::System => return None,
            Source::Ahead(ahead) => ahead.send_modify(|ahead| *ahead = ahead.saturating_add(by)),
            Source::Manual(now) => now.send_modify(|now| *now = now.plus(by)),
        }
        Some(self.now())
    }

    /// Moves the clock forward to `moment`, never back; `None` on the system clock.
    pub fn advance_to(&self, moment: Timestamp) -> Option<Timestamp> {
        self.advance(moment.since(self.now()))
    }
}

#[expect(clippy::disallowed_methods, reason = "the one reader of the wall clock")]
fn system_now() -> Timestamp {
    Timestamp::from_jiff(jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_as_rfc3339_and_read_back() {
        let moment: Timestamp = "2026-12-01T00:00:00Z".parse().unwrap();
        assert_eq!(moment.seconds(), 1_796_083_200);
        assert_eq!(moment.to_string(), "2026-12-01T00:00:00Z");
        assert_eq!(Timestamp::from_ms(1).to_string(), "1970-01-01T00:00:00.001Z");
    }

    #[tokio::test]
    async fn a_manual_clock_wakes_its_sleepers() {
        let clock = Clock::manual(Timestamp::from_seconds(100));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(60)).await }
        });
        // The sleeper reads the clock before it moves.
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(61));
        sleeper.await.unwrap();
        assert_eq!(clock.now(), Timestamp::from_seconds(161));
    }

    #[tokio::test]
    async fn a_clock_moved_ahead_wakes_its_sleepers_too() {
        let clock = Clock::ahead();
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(86_400)).await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(86_401)).unwrap();
        sleeper.await.unwrap();
        assert_eq!(Clock::system().advance(Duration::from_secs(1)), None);
    }
}
