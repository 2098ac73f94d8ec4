-- Periods that turn out to be others than was thought, and usage that Stripe bills only for so long.

-- The start of the period that a run is counted in, where Stripe has said since that it is not the
-- one it was answered in: the answer stays as it was given.
ALTER TABLE usage_events ADD COLUMN counted_from_ms BIGINT;

-- Until when Stripe takes a meter event into the invoice of its period; NULL where there is none.
ALTER TABLE meter_events ADD COLUMN billable_until_ms BIGINT;
CREATE INDEX meter_events_by_deadline ON meter_events (billable_until_ms)
    WHERE state = 'pending' AND billable_until_ms IS NOT NULL;
-- When it was told that the event may miss its invoice.
ALTER TABLE meter_events ADD COLUMN alarmed_at_ms BIGINT;
UPDATE meter_events SET billable_until_ms = (SELECT c.period_end_ms + 3600000 FROM usage_counters AS c
    WHERE c.customer_id = meter_events.customer_id AND c.feature_id = meter_events.feature_id
    AND c.series = meter_events.series AND c.period_start_ms = meter_events.period_start_ms)
WHERE state <> 'delivered' AND EXISTS (SELECT 1 FROM customers AS u
    WHERE u.customer_id = meter_events.customer_id AND u.series = meter_events.series
    AND u.subscription_id IS NOT NULL);
