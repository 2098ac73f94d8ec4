//! A subscription of a 31st, in months that have none.

use super::*;

/// The period in force in Stripe's own words: `start to end`.
async fn period_at_stripe(world: &World, acme: &Subscriber) -> String {
    let path = format!("/v1/subscriptions/{}", acme.subscription);
    let item = world.stripe("GET", &path, &[]).await["items"]["data"][0].clone();
    let [start, end] = ["current_period_start", "current_period_end"]
        .map(|field| Timestamp::from_seconds(item[field].as_i64().unwrap()));
    format!("{start} to {end}")
}

both_databases! {
    async fn a_subscription_of_january_31st_is_counted_and_billed_by_stripes_month_ends(db: TestDb) {
        let days = ["2027-01-31", "2027-02-28", "2027-03-31", "2027-04-30", "2027-05-31"];
        let ends = days.map(|day| format!("{day}T12:00:00Z"));
        let plans = include_str!("../../../plans.example.toml");
        let world = World::with_plans_at(&db, plans, &ends[0]).await;
        let acme = subscriber(&world, "acme", &[]).await;
        let (mut counters, mut invoiced) = (Vec::new(), Vec::new());
        for (month, ends) in ends.windows(2).enumerate() {
            let period = format!("{} to {}", ends[0], ends[1]);
            // Before anything of Stripe's has arrived, and after it.
            jump(&world, &ends[0]);
            assert_eq!(stand(&world, "acme").await, format!("0 from {period}"));
            world.settle().await;
            assert_eq!(period_at_stripe(&world, &acme).await, period);
            // One in its first instant, some in its last second.
            world.runs("acme", 1).await;
            world.clock.advance_to(at(&ends[1]).minus(SECOND));
            world.runs("acme", 1 << month).await;
            let all = format!("{} from {period}", 1 + (1 << month));
            assert_eq!(stand(&world, "acme").await, all);
            let [start, end] = [&ends[0], &ends[1]].map(|end| at(end).ms());
            counters.push(format!("{start}|{end}|{}", 1 + (1 << month)));
            invoiced.push(all);
        }
        world.advance_to(&ends[4]).await;
        world.advance(2 * HOUR).await;
        let stored = "SELECT period_start_ms, period_end_ms, usage_units FROM usage_counters \
            WHERE usage_units > 0 ORDER BY period_start_ms";
        assert_eq!(rows(&db.url, stored).await, counters);
        assert_eq!(acme.billed(&world).await, invoiced);
        assert_adds_up(&world, "acme").await;
    }
}
