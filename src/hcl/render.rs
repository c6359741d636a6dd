//! A tree as HCL text: how a document written in JSON reads in HCL.

use ::hcl::expr::{Expression, Object, ObjectKey};
use ::hcl::structure::{Attribute as OutAttribute, Block as OutBlock, Body as OutBody};
use ::hcl::{Identifier, Number};

use super::tree::{Body, Value, ValueKind};

/// In the canonical format. Of a tree that its schema has let pass; comments are not part of it.
pub fn to_hcl(body: &Body) -> Result<String, ::hcl::Error> {
    let text = ::hcl::format::to_string(&structures(body))?;
    // What was just written can be read.
    Ok(super::format(&text).unwrap_or(text))
}

fn structures(body: &Body) -> OutBody {
    let attributes = body
        .attributes
        .iter()
        .map(|attribute| OutAttribute::new(name(&attribute.name), expression(&attribute.value)));
    let blocks = body.blocks.iter().map(|block| {
        OutBlock::builder(name(&block.kind))
            .add_labels(block.labels.iter().map(|(label, _)| label.clone()))
            .add_structures(structures(&block.body))
            .build()
    });
    OutBody::builder()
        .add_attributes(attributes)
        .add_blocks(blocks)
        .build()
}

fn name(name: &str) -> Identifier {
    Identifier::sanitized(name)
}

fn expression(value: &Value) -> Expression {
    match &value.kind {
        ValueKind::Null => Expression::Null,
        ValueKind::Bool(value) => Expression::Bool(*value),
        ValueKind::Integer(value) => Expression::Number(Number::from(*value)),
        ValueKind::Float(value) => Number::from_f64(*value).map_or(Expression::Null, Expression::Number),
        ValueKind::String(text) => Expression::String(text.clone()),
        ValueKind::List(items) => Expression::Array(items.iter().map(expression).collect()),
        ValueKind::Object(entries) => {
            let entry = |text: &String, value| {
                let key = ObjectKey::Expression(Expression::String(text.clone()));
                (key, expression(value))
            };
            let entries = entries.iter().map(|(text, _, value)| entry(text, value));
            Expression::Object(entries.collect::<Object<_, _>>())
        }
    }
}
