-- Stripe's sums held against ours, where there is much of both.

-- When Stripe's sum last lacked a meter event that Stripe had refused at once. Whether it was counted
-- is asked anew only once this is a day ago.
ALTER TABLE meter_events ADD COLUMN cleared_at_ms BIGINT;
-- Periods are proven, and customers sent for and synced, one customer at a time.
CREATE INDEX meter_events_pending_by_customer ON meter_events (customer_id)
    WHERE state = 'pending';
-- What is not at Stripe is very little beside what is.
CREATE INDEX meter_events_undelivered ON meter_events (timestamp_ms)
    WHERE state IN ('pending', 'parked');
