//! Where the values of a reading came from.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Field name to OIDs (joined by `+` for a sum), URL or attribute.
///
/// A map that readings share until one of them changes it: a device's sources are the same from read to read, and
/// copying their 30 to 100 texts was a third of what a repeated read cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sources(Arc<BTreeMap<String, String>>);

impl Deref for Sources {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Sources {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl From<BTreeMap<String, String>> for Sources {
    fn from(map: BTreeMap<String, String>) -> Self {
        Sources(Arc::new(map))
    }
}

impl From<Sources> for BTreeMap<String, String> {
    fn from(sources: Sources) -> Self {
        Arc::unwrap_or_clone(sources.0)
    }
}

impl FromIterator<(String, String)> for Sources {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        BTreeMap::from_iter(pairs).into()
    }
}

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_ones_own() {
        let first: Sources = [("serial".to_owned(), "1.3".to_owned())].into_iter().collect();
        let mut second = first.clone();
        second.insert("model".to_owned(), "1.4".to_owned());
        assert_eq!((first.len(), second.len()), (1, 2));
        assert_eq!(BTreeMap::from(first).into_keys().collect::<Vec<_>>(), ["serial"]);
    }
}
