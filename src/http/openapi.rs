//! The OpenAPI document: made from the routes themselves, served at `GET /openapi.json`.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Map, Value};
use utoipa::OpenApi as _;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, Content, ContentBuilder, HeaderBuilder, ObjectBuilder, OpenApi, Ref, RefOr,
    Response, ResponseBuilder, Schema, SecurityRequirement, Type,
};
use utoipa_axum::router::OpenApiRouter;

use super::error::ErrorBody;
use super::{Daemon, documented};

/// What opens the product's calls.
pub const API_KEY: &str = "api_key";
/// What opens support's calls.
pub const ADMIN_TOKEN: &str = "admin_token";

/// The beginning of the document; the routes add the rest.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Tollgate",
        description = include_str!("../../templates/pages/api.md"),
    ),
    tags(
        (name = "gate", description = "May this customer run? Asked before, or told after, every AI run."),
        (name = "customers", description = "Who the customers are and what they have used."),
        (name = "quotas", description = "What support sets for one customer: own quotas, grants, old terms."),
        (name = "support", description = "What happened, what waits, and making a customer equal to Stripe."),
        (name = "links", description = "Where Stripe and people with a link arrive."),
        (name = "operation", description = "For whoever runs the daemon, and this document."),
    ),
    components(schemas(ErrorBody)),
)]
struct Beginning;

/// What the pricing report answers has a description of its own, for those who read its files.
const PRICING_REPORT: &str = include_str!("../../docs/pricing-report.schema.json");

/// The whole document, and its text.
pub static DOCUMENT: LazyLock<(Value, String)> = LazyLock::new(|| {
    let document = serde_json::to_value(document()).map(with_pricing_report);
    let document = document.expect("a document of plain types becomes JSON");
    let text = document.to_string();
    (document, text)
});

fn document() -> OpenApi {
    let mut document = Beginning::openapi();
    let schemes = document.components.get_or_insert_with(Components::new);
    for (name, description) in [
        (API_KEY, "An API key of the product: TOLLGATE_API_KEY or one of `tollgate keys create`."),
        (ADMIN_TOKEN, "TOLLGATE_ADMIN_TOKEN."),
    ] {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        let scheme = scheme.description(Some(description)).build();
        schemes.add_security_scheme(name, SecurityScheme::Http(scheme));
    }
    document.merge(documented().into_openapi());
    document
}

/// Adds the pricing report's own schema, its parts under names of this document.
fn with_pricing_report(mut document: Value) -> Value {
    let renamed = PRICING_REPORT
        .replace("#/$defs/report\"", "#/components/schemas/PricingReport\"")
        .replace("#/$defs/", "#/components/schemas/PricingReport_");
    let mut schema: Value = serde_json::from_str(&renamed).expect("a test reads this file");
    for (name, part) in schema["$defs"].as_object_mut().into_iter().flat_map(Map::iter_mut) {
        let name = match name.as_str() {
            "report" => "PricingReport".to_owned(),
            part => format!("PricingReport_{part}"),
        };
        document["components"]["schemas"][name] = part.take();
    }
    document
}

/// The document that says all this, for machines.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", operation_id = "openapi",
    responses((status = 200, description = "This document", content_type = "application/json",
        body = Object)))]
pub async fn json() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.1.as_str())
}

/// Writes into each of these routes' documents which credential opens it, and what any call of
/// this kind may answer.
pub fn guarded(mut routes: OpenApiRouter<Daemon>, credential: &str) -> OpenApiRouter<Daemon> {
    for operation in operations(routes.get_openapi_mut()) {
        operation.security = Some(vec![SecurityRequirement::new(credential, [] as [&str; 0])]);
        let wanted = if credential == API_KEY { "an API key" } else { "the admin token" };
        for (status, description) in [
            ("401", "The credential is missing or not valid".to_owned()),
            ("403", format!("The credential is of the other kind: {wanted} is wanted")),
            ("429", "The key asks more often than TOLLGATE_RATE_LIMIT allows".to_owned()),
            ("503", "The daemon or its database cannot answer now: ask again".to_owned()),
        ] {
            answers(operation, status, &description);
        }
    }
    fallible(routes)
}

/// Writes into each of these routes' documents what goes wrong with any call.
pub fn fallible(mut routes: OpenApiRouter<Daemon>) -> OpenApiRouter<Daemon> {
    for operation in operations(routes.get_openapi_mut()) {
        if operation.request_body.is_some() || operation.parameters.is_some() {
            answers(
                operation,
                "400",
                "Not JSON, a field of the wrong type, or one that comes twice",
            );
            answers(operation, "422", "A field is missing, not known, or has a wrong value");
        }
        if operation.request_body.is_some() {
            answers(operation, "408", "The body took over 30 s");
            answers(operation, "413", "The body has more than 1 MiB");
        }
        answers(operation, "500", "Something went wrong here; it is logged");
        if let Some(RefOr::T(body)) = &mut operation.request_body {
            never_null(body);
        }
    }
    routes
}

/// A body that may be left out is for utoipa one that may be null, which ours may not.
fn never_null(body: &mut RequestBody) {
    for content in body.content.values_mut() {
        let RefOr::T(Content { schema: Some(RefOr::T(Schema::OneOf(choice))), .. }) = content
        else {
            continue;
        };
        let named = choice.items.iter().find(|item| matches!(item, RefOr::Ref(_))).cloned();
        if let (RefOr::T(content), Some(named)) = (content, named) {
            content.schema = Some(named);
        }
    }
}

/// An error among an operation's answers, unless it has words of its own for that status.
fn answers(operation: &mut Operation, status: &str, description: &str) {
    let error = || {
        let content =
            ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let mut response =
            ResponseBuilder::new().description(description).content("application/json", content);
        if let Some((name, header)) = header_of(status) {
            let text = ObjectBuilder::new().schema_type(Type::String).build();
            let header = HeaderBuilder::new().description(Some(header)).schema(Some(text)).build();
            response = response.header(name, header);
        }
        RefOr::<Response>::T(response.build())
    };
    operation.responses.responses.entry(status.to_owned()).or_insert_with(error);
}

fn header_of(status: &str) -> Option<(&'static str, &'static str)> {
    match status {
        "401" => Some(("WWW-Authenticate", "Bearer")),
        "429" | "503" => Some(("Retry-After", "Seconds after which to ask again")),
        _ => None,
    }
}

/// All operations of a document.
fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    document.paths.paths.values_mut().flat_map(|path: &mut PathItem| {
        [&mut path.get, &mut path.put, &mut path.post, &mut path.delete].into_iter().flatten()
    })
}
