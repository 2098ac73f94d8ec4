-- Stripe's sums held against ours.

-- A meter event may also be 'replaced': Stripe's sum showed that it had not counted, and its units
-- go out under another row, which names it. At most one does. That one is no window of its own: its
-- window_end_ms lies before those of all windows of its counter.
ALTER TABLE meter_events ADD COLUMN replaces TEXT;
CREATE UNIQUE INDEX meter_events_replacing ON meter_events (replaces) WHERE replaces IS NOT NULL;
-- Stripe's word for why it came to nothing after it had been received.
ALTER TABLE meter_events ADD COLUMN rejected_code TEXT;
-- When Stripe told of failures without naming them, and this may be one. NULL once that is settled.
ALTER TABLE meter_events ADD COLUMN suspected_at_ms BIGINT;
CREATE INDEX meter_events_parked ON meter_events (next_attempt_at_ms) WHERE state = 'parked';
CREATE INDEX meter_events_suspected ON meter_events (suspected_at_ms)
    WHERE suspected_at_ms IS NOT NULL;
-- What Stripe adds up: one of its customers, one meter, a span of time.
CREATE INDEX meter_events_by_sum ON meter_events (stripe_customer_id, event_name, timestamp_ms);

-- Customers of whom Stripe has counted more than we have: nothing is sent for them until someone has
-- looked.
CREATE TABLE sending_freezes (
    customer_id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    frozen_at_ms BIGINT NOT NULL
);

-- Of pruned_units, those that had gone to a meter; NULL where that is not known.
ALTER TABLE usage_counters ADD COLUMN pruned_metered_units BIGINT DEFAULT 0;
UPDATE usage_counters SET pruned_metered_units = NULL WHERE pruned_units > 0;
-- When Stripe's sums were found to be the counter's, after its period; and when they were last read.
ALTER TABLE usage_counters ADD COLUMN proven_at_ms BIGINT;
ALTER TABLE usage_counters ADD COLUMN compared_at_ms BIGINT;
-- By the start, which never changes, so that counting a run costs nothing here.
CREATE INDEX usage_counters_unproven ON usage_counters (period_start_ms) WHERE proven_at_ms IS NULL;
