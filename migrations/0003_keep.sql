-- Retention: what of a counter's history has been forgotten. A usage event of which only the record
-- of its key is left has a seventh letter in its outcome, 'p'.

-- When all of it was; NULL until then.
ALTER TABLE usage_counters ADD COLUMN pruned_at_ms BIGINT;
-- The request key up to which the customer's events have been gone through for this counter.
ALTER TABLE usage_counters ADD COLUMN pruned_through TEXT;
-- By the start and not by the end of the period: the start never changes, so that counting a run
-- costs nothing here.
CREATE INDEX usage_counters_unpruned ON usage_counters (period_start_ms) WHERE pruned_at_ms IS NULL;
