use crate::config::{BackendTarget, Config, Object, ObjectKey, ObjectKind};
use crate::diagnostics::Diagnostic;
use crate::envoy::{Resource, ResourceKind};
use crate::model::{DocumentId, Origin};
use crate::resolve::Destination;

/// Where the user wrote what became a resource: the line of the object, in one document if it is asked for.
pub(super) struct Behind {
    kind: &'static str,
    name: String,
    /// None: no document says it, as with the instances of a service.
    origin: Option<Origin>,
}

impl Behind {
    pub fn mark(self, diagnostic: Diagnostic) -> Diagnostic {
        let diagnostic = diagnostic.about(self.kind, &self.name);
        match self.origin {
            Some(origin) => diagnostic.at(origin),
            None => diagnostic,
        }
    }

    fn object(object: &Object) -> Self {
        let key = object.key();
        Self {
            kind: key.kind.as_str(),
            name: key.name.to_string(),
            origin: Some(object.origin().clone()),
        }
    }
}

/// What declares the thing that a resource of this kind is.
pub(super) fn declaring_kind(kind: ResourceKind) -> ObjectKind {
    match kind {
        ResourceKind::Cluster | ResourceKind::Endpoint => ObjectKind::Upstream,
        ResourceKind::Secret => ObjectKind::Certificate,
        ResourceKind::Listener | ResourceKind::Runtime => ObjectKind::Gateway,
        ResourceKind::ScopedRoute | ResourceKind::Route => ObjectKind::HttpRoute,
    }
}

/// What a cluster or its endpoints are the destination of: [`crate::resolve::cluster_name`], read backwards.
pub(super) fn destination(resource: &Resource) -> Option<Destination> {
    if !matches!(resource.kind, ResourceKind::Cluster | ResourceKind::Endpoint) {
        return None;
    }
    match resource.name.split_once('/')? {
        ("consul", name) => Some(Destination::Backend(BackendTarget::Consul(name.into()))),
        ("upstream", name) => Some(match name.split_once('/') {
            None => Destination::Backend(BackendTarget::Upstream(name.into())),
            Some((upstream, target)) => match target.strip_prefix("failover/") {
                Some(resolver) => Destination::Failover {
                    upstream: upstream.into(),
                    resolver: resolver.into(),
                },
                None => Destination::Mesh {
                    upstream: upstream.into(),
                    target: target.into(),
                },
            },
        }),
        _ => None,
    }
}

/// The object of this document that became the resource, or that has to do with it.
pub(super) fn object_in(
    config: &Config,
    gateway: &str,
    resource: &Resource,
    document: &DocumentId,
) -> Option<Behind> {
    if let Some(behind) = object_behind(config, gateway, resource)
        && behind
            .origin
            .as_ref()
            .is_some_and(|origin| origin.document == *document)
    {
        return Some(behind);
    }
    let parsed = config.document(document)?.in_service.as_ref()?;
    let host = host_of(resource);
    let claims = |object: &&Object| {
        matches!(object, Object::HttpRoute(route)
            if route.gateways.iter().any(|(name, _)| **name == *gateway)
                && host.is_none_or(|host| route.hostnames.iter().any(|name| **name == *host)))
    };
    let route = parsed
        .objects
        .iter()
        .find(claims)
        .filter(|_| declaring_kind(resource.kind) == ObjectKind::HttpRoute);
    let passed_on = parsed.objects.iter().find(|object| {
        resource.kind == ResourceKind::Listener
            && matches!(object, Object::TcpRoute(route)
                if route.gateways.iter().any(|(name, _)| **name == *gateway)
                    && route.listeners.iter().any(|(name, _)| *name == resource.name))
    });
    route.or(passed_on).or(parsed.objects.first()).map(Behind::object)
}

/// The object that became the resource.
pub(super) fn object_behind(config: &Config, gateway: &str, resource: &Resource) -> Option<Behind> {
    let declared = |kind, name: &str| config.object(&ObjectKey::new(kind, name)).map(Behind::object);
    match resource.kind {
        ResourceKind::Cluster | ResourceKind::Endpoint => match destination(resource)? {
            Destination::Backend(BackendTarget::Consul(name)) => Some(Behind {
                kind: "service",
                name: name.to_string(),
                origin: None,
            }),
            Destination::Backend(BackendTarget::Upstream(name))
            | Destination::Mesh { upstream: name, .. }
            | Destination::Failover { upstream: name, .. } => declared(ObjectKind::Upstream, &name),
        },
        ResourceKind::Secret => {
            let name = resource.name.strip_prefix("certificate/")?;
            declared(ObjectKind::Certificate, name)
        }
        ResourceKind::Runtime => declared(ObjectKind::Gateway, gateway),
        ResourceKind::Listener => {
            let declared = config.gateway(gateway)?;
            let listener = declared
                .listeners
                .iter()
                .find(|listener| listener.name == resource.name)?;
            Some(Behind {
                kind: ObjectKind::Gateway.as_str(),
                name: gateway.to_owned(),
                origin: Some(listener.origin.clone()),
            })
        }
        ResourceKind::ScopedRoute => {
            let (_, route) = config
                .routes_of_host(&gateway.into(), &host_of(resource)?.into())
                .next()?;
            declared(ObjectKind::HttpRoute, &route.name)
        }
        ResourceKind::Route => None,
    }
}

fn host_of(resource: &Resource) -> Option<&str> {
    (resource.kind == ResourceKind::ScopedRoute)
        .then(|| resource.name.split_once('/').map(|(_, host)| host))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::cluster_name;

    #[test]
    fn the_name_of_a_cluster_says_its_destination() {
        let destinations = [
            Destination::Backend(BackendTarget::Consul("orders".into())),
            Destination::Backend(BackendTarget::Upstream("pets".into())),
            Destination::Mesh {
                upstream: "pets".into(),
                target: "v1.pets.default.default.dc1".into(),
            },
            Destination::Failover {
                upstream: "pets".into(),
                resolver: "resolver:pets.default.default.dc1".into(),
            },
        ];
        for kind in [ResourceKind::Cluster, ResourceKind::Endpoint] {
            for expected in &destinations {
                let resource = Resource::new(kind, cluster_name(expected), b"");
                assert_eq!(destination(&resource).as_ref(), Some(expected));
            }
        }
        let resource = Resource::new(ResourceKind::Secret, "certificate/www".into(), b"");
        assert_eq!(destination(&resource), None);
    }
}
