-- The portable subset: TEXT, and BIGINT for times in milliseconds since the epoch, amounts, counts
-- and flags. One file serves SQLite and PostgreSQL.

-- Every plans file that has been in force, so that an old answer can be given again in its own
-- terms and replicas agree on the newest.
CREATE TABLE plan_versions (
    version BIGINT PRIMARY KEY,
    source TEXT NOT NULL,
    activated_at_ms BIGINT NOT NULL
);

-- What the daemon has to remember about itself, such as a signing key made at the first start.
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE customers (
    customer_id TEXT PRIMARY KEY,
    email TEXT,
    name TEXT,
    stripe_customer_id TEXT UNIQUE,
    created_at_ms BIGINT NOT NULL,
    deleted_at_ms BIGINT,
    -- The plan of the live subscription; NULL means the plans file's default.
    plan_id TEXT,
    subscription_id TEXT,
    subscription_status TEXT,
    -- good, grace, past_due or paused; grace has an end.
    standing TEXT NOT NULL,
    grace_ends_at_ms BIGINT,
    -- What the billing periods are reckoned from (domain::period::Cycle).
    series BIGINT NOT NULL,
    anchor_ms BIGINT NOT NULL,
    cycle_interval TEXT NOT NULL,
    stripe_start_ms BIGINT,
    stripe_end_ms BIGINT,
    -- Goes up with each change of what the customer is entitled to; notices are once per version.
    entitlement_version BIGINT NOT NULL,
    -- Goes up with each write; a write names the revision it was decided on.
    revision BIGINT NOT NULL
);
CREATE INDEX customers_by_stripe_end ON customers (stripe_end_ms) WHERE stripe_end_ms IS NOT NULL;

CREATE TABLE usage_counters (
    customer_id TEXT NOT NULL,
    feature_id TEXT NOT NULL,
    series BIGINT NOT NULL,
    period_start_ms BIGINT NOT NULL,
    period_end_ms BIGINT NOT NULL,
    usage_units BIGINT NOT NULL CHECK (usage_units >= 0),
    reserved_units BIGINT NOT NULL CHECK (reserved_units >= 0),
    -- The open metering window: accepted units not yet frozen into a meter event.
    open_start_ms BIGINT,
    open_end_ms BIGINT,
    open_units BIGINT,
    -- The Stripe meter it goes to: fixed when it opens, whatever the plans file says later.
    open_meter TEXT,
    closed_until_ms BIGINT,
    PRIMARY KEY (customer_id, feature_id, series, period_start_ms)
);
CREATE INDEX usage_counters_by_open_end ON usage_counters (open_end_ms) WHERE open_end_ms IS NOT NULL;

-- One row per accepted run, and per remembered answer: a row is also the record of its
-- idempotency key. request_key is 'k:' and the caller's key, or the event's own id.
CREATE TABLE usage_events (
    customer_id TEXT NOT NULL,
    request_key TEXT NOT NULL,
    event_id TEXT,
    request_hash TEXT,
    intent TEXT NOT NULL,
    feature_id TEXT NOT NULL,
    entity_id TEXT,
    asked_units BIGINT NOT NULL,
    counted_units BIGINT NOT NULL,
    reason TEXT NOT NULL,
    plan_id TEXT,
    plan_version BIGINT NOT NULL,
    usage_after BIGINT NOT NULL,
    reserved_after BIGINT NOT NULL,
    series BIGINT NOT NULL,
    period_start_ms BIGINT NOT NULL,
    period_end_ms BIGINT NOT NULL,
    recorded_at_ms BIGINT NOT NULL,
    properties TEXT,
    PRIMARY KEY (customer_id, request_key)
);

CREATE TABLE notices (
    notice_id TEXT PRIMARY KEY,
    customer_id TEXT NOT NULL,
    feature_id TEXT NOT NULL,
    series BIGINT NOT NULL,
    period_start_ms BIGINT NOT NULL,
    period_end_ms BIGINT NOT NULL,
    kind TEXT NOT NULL,
    percent BIGINT NOT NULL,
    entitlement_version BIGINT NOT NULL,
    -- due, sending, sent, dropped, failed or unknown.
    state TEXT NOT NULL,
    -- The facts at the moment that made the notice due.
    usage_units BIGINT NOT NULL,
    plan_id TEXT,
    from_plan_id TEXT,
    plan_version BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    due_at_ms BIGINT NOT NULL,
    -- When it entered its state.
    state_since_ms BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    detail TEXT,
    UNIQUE (customer_id, feature_id, series, period_start_ms, kind, percent, entitlement_version)
);
CREATE INDEX notices_due ON notices (due_at_ms) WHERE state = 'due';
CREATE INDEX notices_by_customer ON notices (customer_id, created_at_ms);

-- The inbox: Stripe's events as they came.
CREATE TABLE stripe_events (
    event_id TEXT PRIMARY KEY,
    event_type TEXT NOT NULL,
    stripe_customer_id TEXT,
    -- The customer named by the event itself (client_reference_id or metadata), or found since.
    customer_id TEXT,
    body TEXT NOT NULL,
    -- pending, applied, ignored or parked.
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    next_attempt_at_ms BIGINT NOT NULL,
    received_at_ms BIGINT NOT NULL,
    settled_at_ms BIGINT,
    detail TEXT
);
CREATE INDEX stripe_events_pending ON stripe_events (next_attempt_at_ms) WHERE state = 'pending';
CREATE INDEX stripe_events_by_stripe_customer ON stripe_events (stripe_customer_id, received_at_ms);
CREATE INDEX stripe_events_by_customer ON stripe_events (customer_id, received_at_ms);

-- The outbox: meter events, every field that Stripe sees fixed before the first send.
CREATE TABLE meter_events (
    identifier TEXT PRIMARY KEY,
    idempotency_key TEXT NOT NULL UNIQUE,
    customer_id TEXT NOT NULL,
    feature_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    stripe_customer_id TEXT NOT NULL,
    units BIGINT NOT NULL CHECK (units > 0),
    timestamp_ms BIGINT NOT NULL,
    series BIGINT NOT NULL,
    period_start_ms BIGINT NOT NULL,
    window_end_ms BIGINT NOT NULL,
    -- pending, delivered or parked.
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    first_sent_at_ms BIGINT,
    next_attempt_at_ms BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    settled_at_ms BIGINT,
    detail TEXT,
    UNIQUE (customer_id, feature_id, series, period_start_ms, window_end_ms)
);
CREATE INDEX meter_events_pending ON meter_events (next_attempt_at_ms) WHERE state = 'pending';
CREATE INDEX meter_events_by_customer ON meter_events (customer_id, created_at_ms);

CREATE TABLE api_keys (
    key_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    -- SHA-256 of the key, which itself is shown once and kept nowhere.
    hash TEXT NOT NULL UNIQUE,
    created_at_ms BIGINT NOT NULL,
    revoked_at_ms BIGINT
);

CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);

CREATE TABLE audit (
    audit_id TEXT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    customer_id TEXT,
    detail TEXT NOT NULL
);
CREATE INDEX audit_by_customer ON audit (customer_id, at_ms);
