//! The only place that knows what time it is.
//!
//! Everything else is handed a [`Timestamp`] or a [`Clock`]. Production runs on the system clock;
//! tests and the sandbox run on a manual one that moves only when told, so that a month passes in
//! a millisecond and nothing ever sleeps on the wall clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch;

/// A moment in UTC, in whole milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    Manual(watch::Sender<Timestamp>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `start` until [`Clock::advance`] or [`Clock::set`] moves it.
    pub fn manual(start: Timestamp) -> Self {
        Self(Source::Manual(watch::Sender::new(start)))
    }

    pub fn now(&self) -> Timestamp {
        match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "the one reader of the wall clock")]
            Source::System => Timestamp::from_jiff(jiff::Timestamp::now()),
            Source::Manual(now) => *now.borrow(),
        }
    }

    /// Returns once the clock shows `deadline` or later.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        /// The system clock may be set while we sleep, so long waits look at it again this often.
        const RECHECK: Duration = Duration::from_secs(30);
        match &self.0 {
            Source::System => loop {
                let left = deadline.since(self.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(RECHECK)).await;
            },
            Source::Manual(now) => {
                let mut now = now.subscribe();
                // The sender lives in `self`, so the channel cannot close while we wait.
                let _ = now.wait_for(|now| *now >= deadline).await;
            }
        }
    }

    /// Returns once `duration` has passed on this clock.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now().plus(duration)).await;
    }

    /// Moves a manual clock forward and answers the new time; `None` on the system clock.
    pub fn advance(&self, by: Duration) -> Option<Timestamp> {
        self.set(self.now().plus(by))
    }

    /// Sets a manual clock, which never goes back; `None` on the system clock.
    pub fn set(&self, to: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Source::System => None,
            Source::Manual(now) => {
                now.send_modify(|now| *now = to.max(*now));
                Some(*now.borrow())
            }
        }
    }
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
    async fn a_manual_clock_wakes_its_sleepers_and_never_goes_back() {
        let clock = Clock::manual(Timestamp::from_seconds(100));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(60)).await }
        });
        clock.advance(Duration::from_secs(61));
        sleeper.await.unwrap();
        clock.set(Timestamp::from_seconds(1));
        assert_eq!(clock.now(), Timestamp::from_seconds(161));
    }
}
