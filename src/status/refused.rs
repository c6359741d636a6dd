use crate::diagnostics::Diagnostic;
use crate::envoy::ResourceKind;
use crate::pipeline::{View, refusal_of_node};
use crate::xds::StreamView;

/// What single Envoys refuse of what is in service. It ends with their next acknowledgement, or with their stream.
pub(super) fn refused_by_nodes(view: &View, streams: &[StreamView]) -> Vec<Diagnostic> {
    let mut all = Vec::new();
    for stream in streams {
        let Some(gateway) = view.gateways.iter().find(|known| known.name == stream.gateway) else {
            continue;
        };
        for kind in ResourceKind::ALL {
            for (name, refusal) in &stream.kind(kind).refused {
                // Another version is on its way, or was put back.
                let current = gateway.compiler.resources().get(kind, name);
                let Some(resource) = current.filter(|current| current.version == refusal.version) else {
                    continue;
                };
                all.push(refusal_of_node(
                    &view.snapshot,
                    &gateway.name,
                    resource,
                    &stream.node,
                    &refusal.message,
                ));
            }
        }
    }
    all
}
