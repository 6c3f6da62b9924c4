//! The limits of builders, each with its setter, unit, default and range in one place, and settings as variables of the
//! environment.

use std::{collections::BTreeMap, ffi::OsStr, fmt, time::Duration};

use crate::error::ConfigError;

/// All variables begin with this.
const RESERVED: &str = "OCTOLLM_";
/// What follows: the settings of a server, a client and a brain, and the URLs of arms.
const GROUPS: [&str; 4] = ["SERVER_", "CLIENT_", "BRAIN_", "ARM_"];
/// Variables of the command line `octo`, which may be set in the shell that starts another program.
const COMMAND_LINE: [&str; 2] = ["URL", "TOKEN"];

/// Variables with one prefix, which are taken one by one. Those that are left at the end are not known.
#[derive(Debug)]
pub struct Vars {
    prefix: &'static str,
    /// By the name after the prefix. `None` where the value is not UTF-8.
    values: BTreeMap<String, Option<String>>,
}

impl Vars {
    /// Reads the variables with a prefix, such as `OCTOLLM_SERVER_`. Those of the other groups are left out.
    ///
    /// # Errors
    /// A variable begins with `OCTOLLM_` and is of no group, and none of the command line `octo`.
    pub fn read<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        prefix: &'static str,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let mut values = BTreeMap::new();
        for (name, value) in variables {
            let (name, value) = (name.as_ref().to_string_lossy(), value.as_ref().to_str());
            let Some(rest) = name.strip_prefix(RESERVED) else { continue };
            if COMMAND_LINE.contains(&rest) {
                continue;
            }
            if !GROUPS.iter().any(|group| rest.starts_with(group)) {
                return Err(unknown(&name, value));
            }
            if let Some(name) = name.strip_prefix(prefix) {
                values.insert(name.to_owned(), value.map(str::to_owned));
            }
        }
        Ok(Self { prefix, values })
    }

    /// Takes a variable, and reads its value. An error of `read` says what is wrong with it.
    ///
    /// # Errors
    /// The value cannot be read. Its text is not in the error, since it may be a secret.
    pub fn take<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.values.remove(name) else { return Ok(None) };
        let read = value.as_deref().ok_or("is not UTF-8").and_then(read);
        read.map(Some).map_err(|problem| ConfigError::new(self.full(name), problem))
    }

    /// Takes the variable of a limit, whose setter has this name.
    ///
    /// # Errors
    /// The value cannot be read, or is out of range.
    pub fn take_limit<T: PartialOrd + Copy + fmt::Debug>(
        &mut self,
        setter: &str,
        read: impl FnOnce(&str) -> Result<T, &'static str>,
        least: T,
        most: T,
    ) -> Result<Option<T>, ConfigError> {
        let name = setter.to_ascii_uppercase();
        let value = self.take(&name, read)?;
        if let Some(value) = value {
            within(self.full(&name), least, value, most)?;
        }
        Ok(value)
    }

    /// The whole name of a variable.
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// # Errors
    /// A variable was not taken.
    pub fn finish(self) -> Result<(), ConfigError> {
        match self.values.iter().next() {
            Some((name, value)) => Err(unknown(&self.full(name), value.as_deref())),
            None => Ok(()),
        }
    }
}

fn unknown(name: &str, value: Option<&str>) -> ConfigError {
    let problem = if is_service_link(name, value) { SERVICE_LINK } else { "is no setting of octollm" };
    ConfigError::new(name.to_owned(), problem)
}

/// What a variable is that Kubernetes has set.
pub const SERVICE_LINK: &str = "is no setting: Kubernetes sets it for a service whose name begins with `octollm`. Set \
                                `enableServiceLinks: false` for the pod, or give the service another name";

/// Whether Kubernetes sets such a variable for each service in the namespace of a pod.
pub fn is_service_link(name: &str, value: Option<&str>) -> bool {
    let is_url = value.is_some_and(|value| value.starts_with("tcp://") || value.starts_with("udp://"));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || ["_TCP", "_UDP"].iter().any(|kind| {
            name.contains("_PORT_") && (name.ends_with(kind) || name.contains(&format!("{kind}_")))
        })
}

/// Reads `500ms`, `30s`, `5m`, `1h` or `2d`.
///
/// # Errors
/// What is expected.
pub fn time(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str =
        "is not a time: set it to a whole number with `ms`, `s`, `m`, `h` or `d`, such as `30s`";
    let (number, unit) = split(text).ok_or(EXPECTED)?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(EXPECTED),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or(EXPECTED)
}

/// Reads `65536`, `64KiB`, `2MiB` or `1GiB`.
///
/// # Errors
/// What is expected.
pub fn bytes<T: TryFrom<u64>>(text: &str) -> Result<T, &'static str> {
    const EXPECTED: &str = "is not a number of bytes: set it to a whole number, alone or with `KiB`, `MiB` or `GiB`, such as `2MiB`";
    let (number, unit) = split(text).ok_or(EXPECTED)?;
    let bytes = match unit {
        "" => Some(number),
        "KiB" => number.checked_mul(1 << 10),
        "MiB" => number.checked_mul(1 << 20),
        "GiB" => number.checked_mul(1 << 30),
        _ => None,
    };
    bytes.and_then(|bytes| T::try_from(bytes).ok()).ok_or(EXPECTED)
}

/// Reads a whole number.
///
/// # Errors
/// What is expected.
pub fn count<T: TryFrom<u64>>(text: &str) -> Result<T, &'static str> {
    let number = split(text).filter(|(_, unit)| unit.is_empty());
    number.and_then(|(number, _)| T::try_from(number).ok()).ok_or("is not a whole number, such as `100`")
}

/// Reads `true` or `false`.
///
/// # Errors
/// What is expected.
pub fn flag(text: &str) -> Result<bool, &'static str> {
    text.parse().map_err(|_| "is neither `true` nor `false`")
}

/// Reads a text that is not empty.
///
/// # Errors
/// What is expected.
pub fn text(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("is empty") } else { Ok(text.to_owned()) }
}

/// The number at the begin of a text, and what follows.
fn split(text: &str) -> Option<(u64, &str)> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    Some((digits.parse().ok()?, unit))
}

/// # Errors
/// Names the setting when its value is out of range.
pub fn within<T: PartialOrd + fmt::Debug>(
    setting: impl Into<std::borrow::Cow<'static, str>>,
    least: T,
    value: T,
    most: T,
) -> Result<(), ConfigError> {
    if least <= value && value <= most {
        return Ok(());
    }
    Err(ConfigError::new(setting, format!("is {value:?}: set it to a value from {least:?} to {most:?}")))
}

/// Declares the struct that holds the limits of a builder, with its defaults, its check and its variables.
#[doc(hidden)]
#[macro_export]
macro_rules! __limits_struct {
    ($Limits:ident { $( $(#[$doc:meta])* $limit:ident: $type:ty as $unit:ident = $default:expr, $least:expr => $most:expr; )+ }) => {
        /// The limits as they are set, by default or by their setters.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct $Limits {
            $( pub(crate) $limit: $type, )+
        }

        impl Default for $Limits {
            fn default() -> Self {
                Self { $( $limit: $default, )+ }
            }
        }

        impl $Limits {
            /// # Errors
            /// Names the first limit that is out of range.
            pub(crate) fn check(&self) -> Result<(), $crate::error::ConfigError> {
                $( $crate::__private::settings::within(stringify!($limit), $least, self.$limit, $most)?; )+
                Ok(())
            }

            /// Takes the variables of all limits.
            ///
            /// # Errors
            /// Names the first variable that cannot be read, or that is out of range.
            pub(crate) fn take(
                &mut self,
                vars: &mut $crate::__private::settings::Vars,
            ) -> Result<(), $crate::error::ConfigError> {
                $(
                    let read = $crate::__private::settings::$unit;
                    if let Some(value) = vars.take_limit::<$type>(stringify!($limit), read, $least, $most)? {
                        self.$limit = value;
                    }
                )+
                Ok(())
            }

            /// The setters whose rows are missing in a document, or have another default there.
            #[cfg(test)]
            pub(crate) fn undocumented(prefix: &str, document: &str) -> Vec<&'static str> {
                let (mut wrong, default) = (Vec::new(), Self::default());
                $(
                    let row = format!("| `{prefix}{}` | ", stringify!($limit).to_ascii_uppercase());
                    let row = document.lines().find(|line| line.starts_with(&row)).unwrap_or_default();
                    let cell = row.trim_end_matches(" |").rsplit("| ").next().unwrap_or_default();
                    let read: Result<$type, _> = $crate::__private::settings::$unit(cell.trim_matches('`'));
                    if read != Ok(default.$limit) {
                        wrong.push(stringify!($limit));
                    }
                )+
                wrong
            }
        }
    };
}

/// Declares a setter for each limit on a builder, whose `config_mut` returns the struct.
#[doc(hidden)]
#[macro_export]
macro_rules! __limits_setters {
    ($Builder:ident { $( $(#[$doc:meta])* $limit:ident: $type:ty as $unit:ident = $default:expr, $least:expr => $most:expr; )+ }) => {
        /// Limits. They are checked when the builder builds.
        impl $Builder {
            $(
                $(#[$doc])*
                pub fn $limit(mut self, $limit: $type) -> Self {
                    self.config_mut().$limit = $limit;
                    self
                }
            )+
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units_and_nothing_is_guessed() {
        assert_eq!(time("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(time("0s"), Ok(Duration::ZERO));
        assert_eq!(time("2d"), Ok(Duration::from_secs(172_800)));
        for bad in
            ["", "5", "s", "1.5s", "-1s", "5 s", "5S", "5sec", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes::<usize>("65536"), Ok(65_536));
        assert_eq!(bytes::<u32>("2MiB"), Ok(2 << 20));
        for bad in ["", "2MB", "2 MiB", "2M", "1.5MiB", "-1", "4GiB"] {
            assert!(bytes::<u32>(bad).is_err(), "{bad}");
        }
        assert_eq!(count::<usize>("100"), Ok(100));
        for bad in ["", "1KiB", "1_000", "+1", "0x10", "99999999999999999999"] {
            assert!(count::<usize>(bad).is_err(), "{bad}");
        }
        assert_eq!((flag("true"), flag("yes").is_err()), (Ok(true), true));
    }

    #[test]
    fn variables_of_nobody_are_refused_and_those_of_other_groups_left_out() {
        let read = |name: &str| Vars::read("OCTOLLM_SERVER_", [(name, "tcp://10.0.0.1:80")]);
        for other in ["PATH", "OCTOLLM_BRAIN_LEASE", "OCTOLLM_ARM_JUDGE", "OCTOLLM_URL", "OCTOLLM_TOKEN"] {
            read(other).unwrap().finish().unwrap();
        }
        for nobodys in ["OCTOLLM_SEVER_MAX_BODY", "OCTOLLM_LISTEN"] {
            assert_eq!(
                read(nobodys).unwrap_err().to_string(),
                format!("`{nobodys}` is no setting of octollm")
            );
        }
        let error = read("OCTOLLM_SERVER_MAX_BDY").unwrap().finish().unwrap_err();
        assert_eq!(error.setting(), "OCTOLLM_SERVER_MAX_BDY");
        for link in ["OCTOLLM_SERVICE_HOST", "OCTOLLM_PORT", "OCTOLLM_JUDGE_PORT_80_TCP_ADDR"] {
            assert!(read(link).unwrap_err().to_string().contains("enableServiceLinks"), "{link}");
        }
    }
}
