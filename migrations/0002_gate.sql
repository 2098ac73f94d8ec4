-- Reservations, quotas and credits; and usage events in half the bytes, before the first release.

-- Usage events anew. What can be told from the key or from the plan is not stored twice.
ALTER TABLE usage_events RENAME TO usage_events_0001;
CREATE TABLE usage_events (
    customer_id TEXT NOT NULL,
    -- 'k:' and the caller's idempotency key, 'r:' and the id of a settled reservation, or the
    -- event's own id.
    request_key TEXT NOT NULL,
    -- The first 64 bits of a hash over the request; NULL where nothing is compared.
    request_hash TEXT,
    -- NULL where it follows from customer and request_key (domain::ids::event_id).
    event_id TEXT,
    -- Letters for intent, reason, limit, threshold, metered and late, in this order
    -- (store::events::Outcome).
    outcome TEXT NOT NULL,
    feature_id TEXT NOT NULL,
    entity_id TEXT,
    plan_id TEXT,
    plan_version BIGINT NOT NULL,
    asked_units BIGINT NOT NULL,
    counted_units BIGINT NOT NULL,
    -- The number in force, if it was not the plan's own.
    granted_units BIGINT,
    usage_after BIGINT NOT NULL,
    reserved_after BIGINT NOT NULL,
    series BIGINT NOT NULL,
    period_start_ms BIGINT NOT NULL,
    period_end_ms BIGINT NOT NULL,
    recorded_at_ms BIGINT NOT NULL,
    -- Until when a reservation was to hold.
    hold_until_ms BIGINT,
    -- What the run used and cost, as far as the caller said.
    model TEXT,
    input_tokens BIGINT,
    cached_input_tokens BIGINT,
    output_tokens BIGINT,
    cost_picodollars BIGINT,
    -- What else the caller said of it, as JSON.
    properties TEXT,
    PRIMARY KEY (customer_id, request_key)
);
INSERT INTO usage_events (customer_id, request_key, request_hash, event_id, outcome, feature_id,
    entity_id, plan_id, plan_version, asked_units, counted_units, usage_after, reserved_after, series,
    period_start_ms, period_end_ms, recorded_at_ms, properties)
SELECT customer_id, request_key, substr(request_hash, 1, 16), event_id,
    CASE intent WHEN 'check' THEN 'c' WHEN 'consume' THEN 'u' WHEN 'record' THEN 't' ELSE 'm' END
    || CASE reason WHEN 'within_limit' THEN 'w' WHEN 'over_soft_limit' THEN 's'
        WHEN 'unlimited' THEN 'u' WHEN 'limit_reached' THEN 'l' WHEN 'held_by_running_jobs' THEN 'h'
        WHEN 'past_due' THEN 'd' WHEN 'paused' THEN 'p' WHEN 'no_plan' THEN 'n' ELSE 'f' END
    || '--'
    -- Whether a run was metered was not written down.
    || '?-',
    feature_id, entity_id, plan_id, plan_version, asked_units, counted_units, usage_after,
    reserved_after, series, period_start_ms, period_end_ms, recorded_at_ms, properties
FROM usage_events_0001;
DROP TABLE usage_events_0001;

ALTER TABLE usage_counters ADD COLUMN from_grants_units BIGINT NOT NULL DEFAULT 0;
-- Units of events that retention has deleted.
ALTER TABLE usage_counters ADD COLUMN pruned_units BIGINT NOT NULL DEFAULT 0;

-- Units held while a run is in flight. Its key is the reservation's own id, because that is all a
-- caller that settles it has to know.
CREATE TABLE reservations (
    reservation_id TEXT PRIMARY KEY,
    customer_id TEXT NOT NULL,
    feature_id TEXT NOT NULL,
    entity_id TEXT,
    series BIGINT NOT NULL,
    period_start_ms BIGINT NOT NULL,
    period_end_ms BIGINT NOT NULL,
    units BIGINT NOT NULL CHECK (units > 0),
    -- pending, committed, released or expired.
    state TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    settled_at_ms BIGINT
);
CREATE INDEX reservations_pending ON reservations (expires_at_ms) WHERE state = 'pending';
CREATE INDEX reservations_held ON reservations (customer_id, feature_id, series, period_start_ms)
    WHERE state = 'pending';

-- A customer's own quota in place of its plan's number, while it is on that plan.
CREATE TABLE overrides (
    customer_id TEXT NOT NULL,
    feature_id TEXT NOT NULL,
    plan_id TEXT,
    -- hard, soft or unlimited; the last has no number.
    enforcement TEXT NOT NULL,
    granted_units BIGINT,
    ends_at_ms BIGINT,
    created_at_ms BIGINT NOT NULL,
    note TEXT,
    PRIMARY KEY (customer_id, feature_id)
);
CREATE INDEX overrides_ending ON overrides (ends_at_ms) WHERE ends_at_ms IS NOT NULL;

-- One-off allowances.
CREATE TABLE grants (
    customer_id TEXT NOT NULL,
    grant_id TEXT NOT NULL,
    feature_id TEXT NOT NULL,
    units BIGINT NOT NULL CHECK (units > 0),
    used_units BIGINT NOT NULL CHECK (used_units >= 0 AND used_units <= units),
    -- before or after: whether it is used before the plan's allowance or after it.
    draw TEXT NOT NULL,
    expires_at_ms BIGINT,
    -- live, expired or revoked. A live one whose time has passed counts as expired.
    state TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    note TEXT,
    PRIMARY KEY (customer_id, grant_id)
);
CREATE INDEX grants_expiring ON grants (expires_at_ms) WHERE state = 'live' AND expires_at_ms IS NOT NULL;

-- Which run used which grant.
CREATE TABLE grant_draws (
    customer_id TEXT NOT NULL,
    request_key TEXT NOT NULL,
    grant_id TEXT NOT NULL,
    units BIGINT NOT NULL CHECK (units > 0),
    series BIGINT NOT NULL,
    feature_id TEXT NOT NULL,
    period_start_ms BIGINT NOT NULL,
    PRIMARY KEY (customer_id, request_key, grant_id)
);

-- 1 once the customer has had an override or a grant, so that the gate looks for them only then.
ALTER TABLE customers ADD COLUMN has_quotas BIGINT NOT NULL DEFAULT 0;
-- The plans file whose limits the customer keeps (`grandfather`); NULL for the one in force.
ALTER TABLE customers ADD COLUMN terms_version BIGINT;
-- The entitlement version with which the plan in force came: what support grants does not make an
-- upgrade's mail untrue.
ALTER TABLE customers ADD COLUMN plan_since_version BIGINT NOT NULL DEFAULT 1;
UPDATE customers SET plan_since_version = entitlement_version;
