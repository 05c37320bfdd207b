//! The page at `/`: files compiled in. It holds nothing that is anybody's, so it takes no key; what it asks for does.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::get;

/// Nothing but the page's own files may run or be asked, and nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Routes, contents and what they are.
const FILES: [(&str, &str, &str); 7] = [
    ("/", HTML, include_str!("index.html")),
    ("/page.css", CSS, include_str!("page.css")),
    ("/page.js", SCRIPT, include_str!("page.js")),
    ("/ask.js", SCRIPT, include_str!("ask.js")),
    ("/denoise.js", SCRIPT, include_str!("denoise.js")),
    ("/status.js", SCRIPT, include_str!("status.js")),
    ("/variants.js", SCRIPT, include_str!("variants.js")),
];

/// Whether `path` is one of the page's files.
pub fn has(path: &str) -> bool {
    FILES.iter().any(|(route, ..)| *route == path)
}

pub fn routes() -> Router {
    let file = |router: Router,
                (route, kind, content): (&'static str, &'static str, &'static str)| {
        router.route(route, get(async move || serve(kind, content)))
    };
    FILES.into_iter().fold(Router::new(), file)
}

fn serve(kind: &'static str, content: &'static str) -> Response {
    let mut response = Response::new(Body::from(content));
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
