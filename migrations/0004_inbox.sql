-- What Stripe says of a subscription beside its status: when it is planned to end, and whether (1)
-- its invoices are not collected.
ALTER TABLE customers ADD COLUMN cancels_at_ms BIGINT;
ALTER TABLE customers ADD COLUMN collection_paused BIGINT NOT NULL DEFAULT 0;
-- 1 if the address is Stripe's, because the product has said none: then it changes as it does there.
ALTER TABLE customers ADD COLUMN email_is_stripes BIGINT NOT NULL DEFAULT 0;
-- When Stripe was last asked about the customer; 0 for never. The sweep takes the longest ago first.
ALTER TABLE customers ADD COLUMN looked_at_ms BIGINT NOT NULL DEFAULT 0;
CREATE INDEX customers_to_sweep ON customers (looked_at_ms) WHERE stripe_customer_id IS NOT NULL;
CREATE INDEX customers_in_grace ON customers (grace_ends_at_ms) WHERE grace_ends_at_ms IS NOT NULL;

-- What a parked event waits for: 'customer' if only for its customer to be created or tied, NULL if
-- for a person.
ALTER TABLE stripe_events ADD COLUMN waits_for TEXT;
UPDATE stripe_events SET waits_for = 'customer' WHERE state = 'parked'
    AND (detail LIKE 'no customer is tied to %' OR detail LIKE 'it cannot be tied to %: there is no such customer');
CREATE INDEX stripe_events_waiting ON stripe_events (event_id) WHERE waits_for IS NOT NULL;
