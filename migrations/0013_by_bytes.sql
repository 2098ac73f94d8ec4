-- On PostgreSQL: text is compared byte by byte, as SQLite does. In a language's order, which a database
-- has by default, each comparison takes longer, and an index that says whether a key was seen before is
-- no longer right when an upgrade of the system's library changes that order.
--
-- This is for a database that nobody has served from yet. One that is in use keeps its order: a change
-- would break the statements that other replicas have prepared, and lock and rebuild everything.

DO $$
DECLARE
    changed RECORD;
BEGIN
    IF EXISTS (SELECT FROM plan_versions) THEN
        RETURN;
    END IF;
    FOR changed IN
        SELECT table_name,
            string_agg(format('ALTER COLUMN %I TYPE TEXT COLLATE "C"', column_name), ', ') AS columns
        FROM information_schema.columns
        WHERE table_schema = current_schema() AND data_type = 'text' AND table_name IN (
            'api_keys', 'audit', 'checkouts', 'checkouts_to_close', 'customers', 'grant_draws', 'grants',
            'leases', 'meter_events', 'notices', 'overrides', 'plan_versions', 'reservations',
            'sending_freezes', 'settings', 'stripe_customer_claims', 'stripe_events', 'usage_counters',
            'usage_events')
        GROUP BY table_name
        ORDER BY table_name
    LOOP
        EXECUTE format('ALTER TABLE %I %s', changed.table_name, changed.columns);
    END LOOP;
END
$$;
