//! The pages that Stripe shows to a customer: Checkout, the portal and an invoice, each with the
//! buttons that matter. What a button does is what the [`super::Simulator`]'s handles do.

use axum::http::Method;

use super::answer::{Answer, ApiError};
use super::checkout::{self, CheckoutPayment};
use super::payments::Outcome;
use super::state::{Call, Origin, text};
use super::{Shared, invoices, portal};

/// Serves `/_sim/<kind>/<id>` and, for its buttons, `/_sim/<kind>/<id>/<what>`.
pub(super) fn serve(shared: &Shared, method: &Method, path: &str) -> Answer {
    let steps: Vec<&str> = path.trim_start_matches("/_sim/").split('/').collect();
    let answer = shared.with_call(Origin::default(), |call| match (method, steps.as_slice()) {
        (&Method::GET, ["checkout", id]) => show_checkout(call, id),
        (&Method::POST, ["checkout", id, "pay"]) => {
            let done = checkout::complete(call, id, CheckoutPayment::Card);
            done.map(|session| {
                let url = text(&session, "success_url").replace("{CHECKOUT_SESSION_ID}", id);
                Answer::redirect(&url)
            })
        }
        (&Method::GET, ["portal", id]) => show_portal(call, id),
        (&Method::POST, ["portal", id, "confirm"]) => {
            portal::confirm(call, id).map(|()| leave_portal(call, id))
        }
        (&Method::GET, ["invoices", id]) => show_invoice(call, id),
        (&Method::POST, ["invoices", id, "pay"]) => {
            invoices::conclude(call, id, Outcome::Paid);
            show_invoice(call, id)
        }
        _ => Err(ApiError::unknown_url(method.as_str(), path)),
    });
    shared.changed.notify_one();
    answer.unwrap_or_else(|error| {
        let answer = error.answer();
        Answer::page(answer.status, page("Something is wrong", &escaped(&answer.body), &[]))
    })
}

fn show_checkout(call: &Call<'_>, id: &str) -> Result<Answer, ApiError> {
    let session = call.state.checkout_sessions.get(id);
    let session = session.ok_or_else(|| ApiError::no_such("checkout.session", id))?;
    let amount = session["amount_total"].as_i64().unwrap_or(0);
    let text = format!("Subscribe for {}.", money(amount, text(session, "currency")));
    let mut buttons = vec![Button::Post("Pay", format!("/_sim/checkout/{id}/pay"))];
    if let Some(url) = session["cancel_url"].as_str() {
        buttons.push(Button::Link("Back", url.to_owned()));
    }
    if session["status"] != "open" {
        let text = "This page is no longer open.";
        return Ok(Answer::page(200, page("Checkout", text, &[])));
    }
    Ok(Answer::page(200, page("Checkout", &text, &buttons)))
}

fn show_portal(call: &Call<'_>, id: &str) -> Result<Answer, ApiError> {
    let session = call.state.portal_sessions.get(id);
    let session = session.ok_or_else(|| ApiError::no_such("portal session", id))?;
    let mut buttons = Vec::new();
    let kind = text(&session["flow"], "type");
    if matches!(kind, "subscription_update_confirm" | "subscription_cancel") {
        buttons.push(Button::Post("Confirm", format!("/_sim/portal/{id}/confirm")));
    }
    if let Some(url) = session["return_url"].as_str() {
        buttons.push(Button::Link("Back", url.to_owned()));
    }
    let text = match kind {
        "subscription_update_confirm" => "Confirm the change of your plan.",
        "subscription_cancel" => "Confirm the end of your plan.",
        _ => "Nothing to confirm here.",
    };
    Ok(Answer::page(200, page("Your plan", text, &buttons)))
}

/// Where the customer goes after confirming: as the flow says, else back.
fn leave_portal(call: &Call<'_>, id: &str) -> Answer {
    let session = call.state.portal_sessions.get(id).cloned().unwrap_or_default();
    let redirect = session["flow"]["after_completion"]["redirect"]["return_url"].as_str();
    match redirect.or(session["return_url"].as_str()) {
        Some(url) => Answer::redirect(url),
        None => Answer::page(200, page("Your plan", "Done.", &[])),
    }
}

fn show_invoice(call: &Call<'_>, id: &str) -> Result<Answer, ApiError> {
    let invoice = call.state.invoices.get(id);
    let invoice = invoice.ok_or_else(|| ApiError::no_such("invoice", id))?;
    let due = invoice["amount_remaining"].as_i64().unwrap_or(0);
    let (text, buttons) = if invoice["status"] == "open" {
        let text = format!("{} are due.", money(due, text(invoice, "currency")));
        (text, vec![Button::Post("Pay", format!("/_sim/invoices/{id}/pay"))])
    } else {
        (format!("This invoice is {}.", text(invoice, "status")), Vec::new())
    };
    Ok(Answer::page(200, page("Invoice", &text, &buttons)))
}

/// Of a currency with two decimals, which all of the sandbox's are.
fn money(minor: i64, currency: &str) -> String {
    format!("{}.{:02} {}", minor / 100, minor % 100, currency.to_uppercase())
}

enum Button {
    /// Posts to this path.
    Post(&'static str, String),
    /// Leads to this address.
    Link(&'static str, String),
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

fn page(title: &str, text: &str, buttons: &[Button]) -> String {
    let buttons = buttons.iter().map(|button| match button {
        Button::Post(label, path) => {
            format!("<form method=\"post\" action=\"{path}\"><button>{label}</button></form>")
        }
        Button::Link(label, url) => format!("<p><a href=\"{}\">{label}</a></p>", escaped(url)),
    });
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <link rel=\"icon\" href=\"data:,\">\
         </head><body><h1>{title}</h1><p>{text}</p>{}</body></html>",
        buttons.collect::<String>()
    )
}
