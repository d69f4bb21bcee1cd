//! The CAs that a node trusts: one, and two while the cluster goes over to another.
//!
//! While there are two, a node shows the old one's word for the new one's key behind its own certificate. So a member
//! that was away, and knows the old CA alone, can be reached, and hears of the new one through the log.

use quire_proto::store::{Meta, RotationRow};

use crate::tls;

/// Roots, the oldest first, and then what one of them certifies of another's key. DER.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Authorities(Vec<Vec<u8>>);

fn is_root(der: &[u8]) -> bool {
    tls::said_of(der).is_some_and(|(said, _)| said.issuer == said.subject)
}

impl Authorities {
    /// From certificates one behind the other; `None` where one does not parse or there is no root.
    pub(crate) fn parse(octets: &[u8]) -> Option<Self> {
        let (mut all, mut rest) = (Vec::new(), octets);
        while !rest.is_empty() {
            let (_, behind) = tls::said_of(rest)?;
            all.push(rest[..rest.len() - behind.len()].to_vec());
            rest = behind;
        }
        let all = Authorities(all);
        (!all.roots().is_empty()).then_some(all)
    }

    /// From a join's answer.
    pub(crate) fn of(certificates: &[impl AsRef<[u8]>]) -> Option<Self> {
        Self::parse(&certificates.iter().flat_map(AsRef::as_ref).copied().collect::<Vec<u8>>())
    }

    /// As the tables say; `None` before a cluster is in them.
    pub(crate) fn of_tables(meta: &Meta, row: &RotationRow) -> Option<Self> {
        let next = quire_coordinator::rotation::next_ca(row);
        let parts = [
            Some(&meta.ca_certificate_der),
            next.map(|ca| &ca.certificate_der),
            next.map(|ca| &ca.cross_der),
        ];
        Self::of(&parts.into_iter().flatten().collect::<Vec<_>>())
    }

    /// One certificate behind the other.
    pub(crate) fn octets(&self) -> Vec<u8> {
        self.0.concat()
    }

    /// Each, for a join's answer.
    pub(crate) fn each(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// Those to trust, the oldest first.
    pub(crate) fn roots(&self) -> Vec<&[u8]> {
        self.0.iter().map(Vec::as_slice).filter(|der| is_root(der)).collect()
    }

    /// The root that new certificates come from.
    pub(crate) fn newest(&self) -> &[u8] {
        self.roots().last().copied().unwrap_or_default()
    }

    /// The root that signed a certificate of this node's own, by its name.
    pub(crate) fn signer_of(&self, certificate: &[u8]) -> Option<&[u8]> {
        let (said, _) = tls::said_of(certificate)?;
        let named = |root: &&[u8]| tls::said_of(root).is_some_and(|(root, _)| root.subject == said.issuer);
        self.roots().into_iter().find(named)
    }

    /// What is shown to peers: the certificate, and whatever may lead from it to a CA that they know.
    pub(crate) fn chain<'c>(&'c self, certificate: &'c [u8]) -> Vec<&'c [u8]> {
        let (roots, crosses): (Vec<_>, Vec<_>) =
            self.0.iter().map(Vec::as_slice).partition(|der| is_root(der));
        [vec![certificate], crosses, roots].concat()
    }

    /// What to trust after the tables said `said`: they may be behind what this node knows already, and then say nothing.
    pub(crate) fn after(&self, said: Authorities) -> Option<Authorities> {
        let known = said.roots().contains(&self.newest());
        (known && said != *self).then_some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Authority;

    #[test]
    fn trust_only_goes_forward() {
        let make = |name: &str| Authority::generate(name).unwrap();
        let (one, two, three) = (make("1"), make("2"), make("3"));
        let cross = |old: &Authority, new: &Authority, name: &str| old.vouch_for(new, name).unwrap();
        let of = |ders: &[&[u8]]| Authorities::of(ders).unwrap();
        let (old, new) = (of(&[one.certificate()]), of(&[two.certificate()]));
        let both = of(&[one.certificate(), two.certificate(), &cross(&one, &two, "2")]);
        assert_eq!(Authorities::parse(&both.octets()), Some(both.clone()));
        assert_eq!((both.roots().len(), both.newest()), (2, two.certificate()));
        assert_eq!(old.after(both.clone()), Some(both.clone()));
        assert_eq!(both.after(new.clone()), Some(new.clone()));
        assert_eq!(both.after(both.clone()), None);
        assert_eq!(both.after(old.clone()), None, "tables of before");
        assert_eq!(new.after(old.clone()), None, "tables of long before");
        let next = of(&[two.certificate(), three.certificate(), &cross(&two, &three, "3")]);
        assert_eq!(new.after(next.clone()), Some(next));
        assert!(Authorities::parse(b"nothing").is_none() && Authorities::parse(b"").is_none());
        assert!(Authorities::parse(&cross(&one, &two, "2")).is_none(), "no root");
    }
}
