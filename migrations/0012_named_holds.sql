-- Reservations that name whom they were for, by their counter: retention forgets that with the rest
-- of a period's history, as it is done here where that is forgotten already.

UPDATE reservations SET entity_id = NULL WHERE entity_id IS NOT NULL AND state <> 'pending'
    AND EXISTS (SELECT 1 FROM usage_counters AS c WHERE c.customer_id = reservations.customer_id
    AND c.feature_id = reservations.feature_id AND c.series = reservations.series
    AND c.period_start_ms = reservations.period_start_ms AND c.pruned_at_ms IS NOT NULL);

CREATE INDEX reservations_named ON reservations (customer_id, feature_id, series, period_start_ms)
    WHERE entity_id IS NOT NULL AND state <> 'pending';
