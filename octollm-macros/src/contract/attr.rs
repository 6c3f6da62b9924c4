//! Reads `#[task(..)]`.

use syn::{
    Attribute, Ident, LitBool, LitInt, LitStr, Token, Type,
    ext::IdentExt,
    parse::{Parse, ParseStream},
};

use crate::{
    entries::{self, begin_value, set, value},
    errors::Errors,
    reach,
};

const KEYS: [&str; 15] = [
    "name",
    "version",
    "output",
    "chunk",
    "path",
    "scope",
    "timeout",
    "idempotent",
    "cache",
    "summary",
    "title",
    "tags",
    "examples",
    "effects",
    "crate",
];

/// The attribute, unchecked.
#[derive(Default)]
pub(crate) struct Attrs {
    pub(crate) name: Option<LitStr>,
    pub(crate) version: Option<LitInt>,
    pub(crate) output: Option<Type>,
    pub(crate) chunk: Option<Type>,
    pub(crate) path: Option<LitStr>,
    pub(crate) scope: Option<LitStr>,
    pub(crate) timeout: Option<LitStr>,
    pub(crate) idempotent: Option<bool>,
    pub(crate) cache: Option<LitStr>,
    pub(crate) summary: Option<LitStr>,
    pub(crate) title: Option<LitStr>,
    pub(crate) tags: Option<Texts>,
    pub(crate) examples: Option<Texts>,
    pub(crate) effects: Option<LitStr>,
    krate: Option<syn::Path>,
}

impl Attrs {
    /// Reads every `#[task(..)]`; a mistake costs its own entry only.
    pub(crate) fn read(attrs: &[Attribute], errors: &mut Errors) -> Self {
        let mut read = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("task")) {
            let example = "#[task(name = \"code.validate\")]";
            entries::of(attr, example, errors, &mut |entry| read.entry(entry));
        }
        read
    }

    fn entry(&mut self, entry: ParseStream<'_>) -> syn::Result<()> {
        let key = entry.call(Ident::parse_any)?;
        match key.to_string().as_str() {
            "name" => set(&mut self.name, &key, text(entry, &key, "code.validate")?),
            "version" => set(&mut self.version, &key, value(entry, &key, "a whole number", "2")?),
            "output" => set(&mut self.output, &key, a_type(entry, &key, "Verdict")?),
            "chunk" => set(&mut self.chunk, &key, a_type(entry, &key, "Line")?),
            "path" => set(&mut self.path, &key, text(entry, &key, "/validate")?),
            "scope" => set(&mut self.scope, &key, text(entry, &key, "code:validate")?),
            "timeout" => set(&mut self.timeout, &key, text(entry, &key, "10s")?),
            "idempotent" => set(&mut self.idempotent, &key, flag(entry, &key)?),
            "cache" => set(&mut self.cache, &key, text(entry, &key, "60s")?),
            "summary" => set(&mut self.summary, &key, text(entry, &key, "Checks code.")?),
            "title" => set(&mut self.title, &key, text(entry, &key, "Check code")?),
            "tags" => set(&mut self.tags, &key, value(entry, &key, TEXTS, "[\"rust\", \"review\"]")?),
            "examples" => set(&mut self.examples, &key, value(entry, &key, TEXTS, "[\"Is this Rust?\"]")?),
            "effects" => set(&mut self.effects, &key, text(entry, &key, "none")?),
            "crate" => {
                begin_value(entry, &key, "octollm")?;
                set(&mut self.krate, &key, reach::crate_path(entry)?)
            }
            unknown => {
                let hint = entries::hint(unknown, &KEYS, "keys");
                Err(syn::Error::new_spanned(&key, format!("unknown key `{unknown}`: {hint}")))
            }
        }
    }
}

/// `["rust", "review"]`
#[derive(Default)]
pub(crate) struct Texts(pub(crate) Vec<LitStr>);

const TEXTS: &str = "a list of texts in quotes";

impl Parse for Texts {
    fn parse(value: ParseStream<'_>) -> syn::Result<Self> {
        let content;
        syn::bracketed!(content in value);
        let texts = content.parse_terminated(<LitStr as Parse>::parse, Token![,])?;
        Ok(Self(texts.into_iter().collect()))
    }
}

fn text(entry: ParseStream<'_>, key: &Ident, example: &str) -> syn::Result<LitStr> {
    value(entry, key, "a text in quotes", &format!("\"{example}\""))
}

fn a_type(entry: ParseStream<'_>, key: &Ident, example: &str) -> syn::Result<Type> {
    value(entry, key, "a type, without quotes", example)
}

/// `idempotent`, or `idempotent = true`.
fn flag(entry: ParseStream<'_>, key: &Ident) -> syn::Result<bool> {
    if !entry.peek(Token![=]) {
        return Ok(true);
    }
    value::<LitBool>(entry, key, "`true` or `false`", "true").map(|value| value.value)
}

/// The milliseconds of a time limit.
pub(crate) fn time_limit(text: &str) -> Result<u64, String> {
    millis(text, "a time limit", "a time limit of nothing would end every call before it began")
}

/// The milliseconds for which an answer is cached.
pub(crate) fn cache_time(text: &str) -> Result<u64, String> {
    millis(text, "a time", "an answer that is cached for no time is not cached: leave `cache` out")
}

/// The milliseconds of `500ms`, `10s`, `2m` or `1h`. `what` it is, and why it is not `nothing`, are for the error.
fn millis(text: &str, what: &str, nothing: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    if digits.is_empty() || factor == 0 {
        return Err(format!(
            "`{text}` is not {what}: it takes a whole number and `ms`, `s`, `m` or `h`, such as `10s`"
        ));
    }
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
        Some(0) => Err(nothing.into()),
        Some(millis) => Ok(millis),
        None => Err(format!("`{text}` is too long a time")),
    }
}

#[cfg(test)]
mod tests {
    use quote::ToTokens;
    use syn::{DeriveInput, parse_quote};

    use super::*;

    fn read(input: DeriveInput) -> (Attrs, Vec<String>) {
        let mut errors = Errors::default();
        let attrs = Attrs::read(&input.attrs, &mut errors);
        (attrs, errors.messages())
    }

    #[test]
    fn reads_every_key_over_several_attributes() {
        let (attrs, errors) = read(parse_quote! {
            #[task(name = "a.b", version = 2, output = HashMap<String, u8>, chunk = (), path = "/x",)]
            #[task(scope = "a:b", timeout = "1s", idempotent = false, summary = "S", crate = "a::b")]
            #[task(cache = "60s", title = "T", tags = ["a", "b",], examples = [], effects = "additive")]
            struct A;
        });
        assert_eq!(errors, [""; 0]);
        assert_eq!(attrs.name.unwrap().value(), "a.b");
        assert_eq!(attrs.version.unwrap().base10_digits(), "2");
        assert_eq!(attrs.output.unwrap().to_token_stream().to_string(), "HashMap < String , u8 >");
        assert_eq!(attrs.chunk.unwrap().to_token_stream().to_string(), "()");
        assert_eq!(attrs.path.unwrap().value(), "/x");
        assert_eq!(attrs.scope.unwrap().value(), "a:b");
        assert_eq!(attrs.timeout.unwrap().value(), "1s");
        assert_eq!(attrs.idempotent, Some(false));
        assert_eq!(attrs.summary.unwrap().value(), "S");
        assert_eq!(attrs.cache.unwrap().value(), "60s");
        assert_eq!(attrs.title.unwrap().value(), "T");
        let tags: Vec<_> = attrs.tags.unwrap().0.iter().map(LitStr::value).collect();
        assert_eq!(tags, ["a", "b"]);
        assert!(attrs.examples.unwrap().0.is_empty());
        assert_eq!(attrs.effects.unwrap().value(), "additive");
    }

    #[test]
    fn a_mistake_costs_its_own_entry_only() {
        let (attrs, errors) = read(parse_quote! {
            #[task(name = 5, output = "Verdict", retries = HashMap<String, u8>, timeout, idempotent, idempotent, path = "/x")]
            struct A;
        });
        assert_eq!(
            errors,
            [
                "`name` takes a text in quotes: `name = \"code.validate\"`",
                "`output` takes a type, without quotes: `output = Verdict`",
                "unknown key `retries`: the keys are `name`, `version`, `output`, `chunk`, `path`, `scope`, `timeout`, \
                 `idempotent`, `cache`, `summary`, `title`, `tags`, `examples`, `effects`, `crate`",
                "`timeout` needs a value: `timeout = \"10s\"`",
                "`idempotent` is given twice",
            ]
        );
        assert_eq!(attrs.path.unwrap().value(), "/x");
    }

    #[test]
    fn survives_any_tokens() {
        for tokens in [
            "=",
            ",",
            "name = ,",
            "name =",
            "5",
            "name \"a\"",
            "output = Vec<, x",
            "a b c, d",
            "name = \"a\" \"b\"",
            "tags = [5]",
            "tags = \"a\"",
            "tags = [\"a\" \"b\"]",
        ] {
            let tokens: proc_macro2::TokenStream = tokens.parse().unwrap();
            let (_, errors) = read(parse_quote!(
                #[task(#tokens)]
                struct A;
            ));
            assert!(!errors.is_empty(), "{tokens}");
        }
    }

    #[test]
    fn reads_whole_numbers_with_a_unit() {
        for (text, expected) in
            [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000), ("007s", 7_000)]
        {
            assert_eq!(time_limit(text), Ok(expected));
        }
    }

    #[test]
    fn refuses_other_time_limits() {
        for text in [
            "",
            "10",
            "s",
            "0s",
            "0ms",
            "1.5s",
            "-1s",
            "+1s",
            "10 s",
            "10S",
            "1d",
            "1m30s",
            "99999999999999999h",
        ] {
            assert!(time_limit(text).is_err() && cache_time(text).is_err(), "{text}");
        }
    }
}
