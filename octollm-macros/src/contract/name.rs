//! What a contract is called: the rules of names, scopes and routes, and what stands where none is given.

/// Routes that servers have for themselves, now or for other protocols.
const RESERVED: [&str; 17] = [
    "/a2a",
    "/arms",
    "/capabilities",
    "/dashboard",
    "/dead-letters",
    "/docs",
    "/events",
    "/execute",
    "/health",
    "/hooks",
    "/mcp",
    "/metrics",
    "/openapi.json",
    "/preprocess",
    "/ready",
    "/tasks",
    "/ws",
];

/// Everything below these is reserved too.
const RESERVED_BELOW: [&str; 8] =
    ["/.well-known/", "/a2a/", "/arms/", "/dead-letters/", "/hooks/", "/mcp/", "/tasks/", "/ws/"];

/// The longest name that models take for a function, in characters.
const FUNCTION_NAME: usize = 64;

/// `ValidateCode` is `code.validate`: type names begin with the verb, contract names end with it.
///
/// Several words after the verb make one entity (`ListCrateFiles` is `crate-files.list`); a single word is an entity
/// that is run (`Review` is `review.run`). `None` where the letters of the type make no name.
pub(crate) fn from_type(ident: &str) -> Option<String> {
    let words = words(ident);
    let name = match words.split_first()? {
        (entity, []) => format!("{entity}.run"),
        (verb, entity) => format!("{}.{verb}", entity.join("-")),
    };
    check(&name).is_ok().then_some(name)
}

/// The words of a name in camel case, in lower case; `HTTPRoute` is two.
fn words(ident: &str) -> Vec<String> {
    let letters: Vec<char> = ident.chars().collect();
    let mut words = vec![String::new()];
    for (position, &letter) in letters.iter().enumerate() {
        let before = position.checked_sub(1).map(|before| letters[before]);
        let ends_acronym = letters.get(position + 1).is_some_and(|next| next.is_lowercase());
        let begins = letter.is_uppercase() && (before.is_some_and(|it| !it.is_uppercase()) || ends_acronym);
        if begins || letter == '_' {
            words.push(String::new());
        }
        if let (Some(word), true) = (words.last_mut(), letter != '_') {
            word.extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The rules that the runtime has for names read at run time: every name has a form in other protocols.
pub(crate) fn check(name: &str) -> Result<(), String> {
    let Some((_, verb)) = name.rsplit_once('.') else {
        return Err(not_a_name(name));
    };
    if !name.split('.').all(is_word) {
        return Err(not_a_name(name));
    }
    for part in name.split('.') {
        if part.contains("__") {
            return Err(format!(
                "`{name}` has `__`, which joins the parts of a name where models call functions"
            ));
        }
        if part.ends_with(['_', '-']) {
            return Err(format!(
                "`{part}` in `{name}` ends in `_` or `-`: a part ends in a letter or a digit"
            ));
        }
    }
    if verb.strip_prefix('v').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(format!("`{verb}` reads as a version at the end of `{name}`: give it by `version = ..`"));
    }
    Ok(())
}

/// Whether the name, with its version, is short enough for what models call.
pub(crate) fn check_length(name: &str, version: u32) -> Result<(), String> {
    let suffix = if version == 1 { String::new() } else { format!("__v{version}") };
    let length = name.replace('.', "__").len() + suffix.len();
    if length <= FUNCTION_NAME {
        return Ok(());
    }
    Err(format!(
        "`{name}` is too long: as the name of a function it has {length} characters, and at most {FUNCTION_NAME} are allowed"
    ))
}

fn not_a_name(name: &str) -> String {
    format!(
        "`{name}` is not a contract name: it takes `entity.verb`, such as `code.validate`, in lower-case letters, \
         digits, `-` and `_`"
    )
}

fn is_word(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

/// `/validate` for `code.validate`; `/v2/validate` for version 2.
pub(crate) fn path_of(name: &str, version: u32) -> String {
    let verb = name.rsplit('.').next().unwrap_or(name);
    match version {
        1 => format!("/{verb}"),
        version => format!("/v{version}/{verb}"),
    }
}

/// `code:validate` for `code.validate`.
pub(crate) fn scope_of(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((entity, verb)) => format!("{entity}:{verb}"),
        None => name.to_owned(),
    }
}

/// A route of plain segments, which no server and no proxy reads in another way, and which no server has for itself.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("`{path}` is not the path of a contract: {why}"));
    let Some(segments) = path.strip_prefix('/') else {
        return refuse("it begins with `/`");
    };
    if path.contains(['?', '#']) {
        return refuse("it has no query and no fragment");
    }
    if path.ends_with('/') {
        return refuse("it does not end with `/`");
    }
    if segments.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return refuse("its segments are not empty, `.` or `..`");
    }
    let is_unreserved = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~');
    if let Some(odd) = segments.chars().find(|&c| c != '/' && !is_unreserved(c)) {
        return refuse(&format!("`{}` is none of letters, digits, `-`, `.`, `_`, `~`", odd.escape_debug()));
    }
    if is_reserved(path) {
        return Err(format!("`{path}` is a route that servers have for themselves: choose another `path`"));
    }
    Ok(())
}

fn is_reserved(path: &str) -> bool {
    RESERVED.contains(&path) || RESERVED_BELOW.iter().any(|above| path.starts_with(above))
}

/// `entity:verb`, as tokens carry it: no spaces, which part scopes, and one colon.
pub(crate) fn check_scope(scope: &str) -> Result<(), String> {
    let parts = scope.split_once(':');
    let is_part = |part: &str| part.split('.').all(is_word);
    if parts.is_some_and(|(entity, verb)| is_part(entity) && is_part(verb)) {
        return Ok(());
    }
    Err(format!(
        "`{scope}` is not a scope: it takes `entity:verb`, such as `code:validate`, in lower-case letters, digits, `-`, \
         `_` and `.`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_names_say_the_verb_first() {
        for (ident, name) in [
            ("ValidateCode", Some("code.validate")),
            ("ListCrateFiles", Some("crate-files.list")),
            ("Review", Some("review.run")),
            ("ParseHTTPRequest", Some("http-request.parse")),
            ("ReadURL", Some("url.read")),
            ("Base64Encode", Some("encode.base64")),
            ("Fetch_Page", Some("page.fetch")),
            ("Check2D", Some("d.check2")),
            ("review", Some("review.run")),
            ("PrüfeCode", None),
            ("_", None),
            ("_2", None),
        ] {
            assert_eq!(from_type(ident).as_deref(), name, "{ident}");
        }
    }

    #[test]
    fn routes_and_scopes_follow_from_the_name() {
        assert_eq!(path_of("code.validate", 1), "/validate");
        assert_eq!(path_of("rust.code.validate", 2), "/v2/validate");
        assert_eq!(scope_of("code.validate"), "code:validate");
        assert_eq!(scope_of("rust.code.validate"), "rust.code:validate");
    }

    #[test]
    fn what_follows_from_a_name_keeps_the_rules() {
        for name in ["code.validate", "a.b.c", "crate-files.list_all", "x1.y2"] {
            assert_eq!(check(name), Ok(()));
            assert_eq!(check_path(&path_of(name, 3)), Ok(()));
            assert_eq!(check_scope(&scope_of(name)), Ok(()));
        }
    }

    #[test]
    fn refuses_what_names_nothing() {
        for name in ["", ".", "code", "code.", ".run", "Code.run", "a..b", "a.1b", "a.b c", "a:b"] {
            assert!(check(name).is_err(), "{name}");
        }
        for scope in ["", ":", "code", "code:", ":run", "a:b:c", "a b:c", "A:b", "a..b:c", "ä:b"] {
            assert!(check_scope(scope).is_err(), "{scope}");
        }
    }

    #[test]
    fn refuses_what_another_protocol_could_not_name() {
        for (name, why) in [
            ("a__b.c", "`__`"),
            ("a_.c", "ends in"),
            ("a.c-", "ends in"),
            ("a.v2", "reads as a version"),
            ("a.b.v10", "reads as a version"),
        ] {
            assert!(check(name).is_err_and(|error| error.contains(why)), "{name}");
        }
        for name in ["a_b.c-d", "v2.a", "a.v2.b", "a.v", "a.v2x", "a--b.c"] {
            assert_eq!(check(name), Ok(()));
        }
        let longest = format!("a.{}", "b".repeat(61));
        assert_eq!(check_length(&longest, 1), Ok(()));
        assert!(check_length(&longest, 2).is_err());
        assert!(check_length(&(longest + "b"), 1).is_err());
    }

    #[test]
    fn refuses_routes_that_are_read_in_two_ways() {
        for path in [
            "", "/", "validate", "/a/", "//", "/a//b", "/../a", "/a/..", "/./a", "/a?b", "/a#b", "/a b",
            "/{id}", "/%2e%2e", "/a\\b", "/ä", "/a:b", "/a*",
        ] {
            assert!(check_path(path).is_err(), "{path}");
        }
        for path in
            ["/validate", "/v2/validate", "/A-b_c.d~e/f", "/openapi", "/executes", "/v2/execute", "/..a"]
        {
            assert_eq!(check_path(path), Ok(()));
        }
    }

    #[test]
    fn refuses_routes_that_servers_have() {
        for path in RESERVED.iter().copied().chain([
            "/tasks/1",
            "/tasks/1/events",
            "/ws/tasks/1",
            "/mcp/x",
            "/.well-known/jwks.json",
        ]) {
            assert!(check_path(path).is_err_and(|why| why.contains("have for themselves")), "{path}");
        }
    }
}
