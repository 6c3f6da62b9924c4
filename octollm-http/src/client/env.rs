//! Arms from environment variables.

use std::ffi::OsStr;

use super::config_error::ConfigError;

const PREFIX: &str = "OCTOLLM_ARM_";

/// One variable: its name, the arm it names, and its URLs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ArmVariable {
    pub(super) name: String,
    pub(super) arm_id: String,
    pub(super) urls: Vec<String>,
}

/// Reads `OCTOLLM_ARM_<ID>=url[,url]` and passes all others over. In the order of their names: that of an environment
/// means nothing.
pub(super) fn read<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    variables: impl IntoIterator<Item = (K, V)>,
) -> Result<Vec<ArmVariable>, ConfigError> {
    let mut arms = Vec::new();
    for (name, value) in variables {
        let name = name.as_ref().to_string_lossy();
        let Some(id) = name.strip_prefix(PREFIX) else { continue };
        let arm_id = id.to_ascii_lowercase().replace('_', "-");
        let Some(value) = value.as_ref().to_str() else {
            return Err(ConfigError::NotUtf8 { name: name.into_owned() });
        };
        let urls = value.split(',').map(|url| url.trim().to_owned()).collect();
        arms.push(ArmVariable { arm_id, urls, name: name.into_owned() });
    }
    arms.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(arms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_variables_only() {
        let arms = read([
            ("PATH", "/bin"),
            ("OCTOLLM_ARM_JUDGE", "http://judge:8103"),
            ("OCTOLLM_ARM_CODE_REVIEWER", "http://a:1, http://b:2"),
            ("OCTOLLM_ARMS", "x"),
        ])
        .unwrap();
        assert_eq!(arms.len(), 2);
        assert_eq!(arms[0].arm_id, "code-reviewer");
        assert_eq!(arms[0].urls, ["http://a:1", "http://b:2"]);
        assert_eq!(arms[1].name, "OCTOLLM_ARM_JUDGE");
    }
}
