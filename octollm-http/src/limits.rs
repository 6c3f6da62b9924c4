//! Limits that are set one by one: each has its type, default and range in one place.

use std::fmt;

use octollm_core::error::ConfigError;

/// Declares the struct that holds the limits of a builder, with its defaults and its check.
macro_rules! limits_struct {
    ($Limits:ident { $( $(#[$doc:meta])* $limit:ident: $type:ty = $default:expr, $least:expr => $most:expr; )+ }) => {
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
            pub(crate) fn check(&self) -> Result<(), ConfigError> {
                $( crate::limits::within(stringify!($limit), $least, self.$limit, $most)?; )+
                Ok(())
            }
        }
    };
}
pub(crate) use limits_struct;

/// Declares a setter for each limit on a builder, whose `config_mut` returns the struct.
macro_rules! limits_setters {
    ($Builder:ident { $( $(#[$doc:meta])* $limit:ident: $type:ty = $default:expr, $least:expr => $most:expr; )+ }) => {
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
pub(crate) use limits_setters;

/// # Errors
/// Names the setting when its value is out of range.
pub(crate) fn within<T: PartialOrd + fmt::Debug>(
    setting: &'static str,
    least: T,
    value: T,
    most: T,
) -> Result<(), ConfigError> {
    if least <= value && value <= most {
        return Ok(());
    }
    Err(ConfigError::new(setting, format!("is {value:?}: set it to a value from {least:?} to {most:?}")))
}
