//! The stable text form of a graph, for `--dump` and for snapshots.

use super::{Constant, Graph, Precision, Source, Value, WeightForm, shape};
use std::fmt;

impl fmt::Display for Graph {
    /// One line per input, node and output; weights and small constants stand where they are used.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph {}", self.name)?;
        for &id in &self.inputs {
            writeln!(f, "  in  {}", typed(self.value(id)))?;
        }
        for node in &self.nodes {
            let inputs: Vec<String> = node.inputs.iter().map(|&id| reference(self.value(id))).collect();
            let outputs: Vec<String> = node
                .outputs
                .iter()
                .map(|&id| shape::show(&self.value(id).shape))
                .collect();
            let precision = match node.precision {
                Precision::Storage => "",
                Precision::Full => " full",
            };
            let op = format!("{:?}", node.op);
            writeln!(
                f,
                "  {} = {op}({}) -> {}{precision}",
                node.name,
                inputs.join(", "),
                outputs.join(", ")
            )?;
        }
        for &id in &self.outputs {
            writeln!(f, "  out {}", typed(self.value(id)))?;
        }
        Ok(())
    }
}

fn typed(value: &Value) -> String {
    format!("{} {} {}", value.name, value.dtype, shape::show(&value.shape))
}

fn reference(value: &Value) -> String {
    match &value.source {
        Source::Input | Source::Node => value.name.clone(),
        Source::Weight(weight) if weight.form == WeightForm::Transposed => format!("{}^T", weight.name),
        Source::Weight(_) => value.name.clone(),
        Source::Constant(Constant::Float32(data)) if data.len() == 1 => format!("{:?}", data[0]),
        Source::Constant(Constant::Int64(data)) if data.len() == 1 => format!("{}", data[0]),
        Source::Constant(_) => format!("{}{}", value.name, shape::show(&value.shape)),
    }
}

#[cfg(test)]
mod tests {
    use crate::dtype::DType;
    use crate::graph::{Builder, Dim};

    #[test]
    fn text_form() {
        let mut b = Builder::new("tiny");
        let x = b.input("x", DType::Float32, &[Dim::Batch, Dim::New, Dim::Fixed(2)]);
        let y = {
            let b = &mut b.scope("model");
            let normed = b.rms_norm("norm", x, 2, 1e-6);
            b.linear("up", normed, 2, 3, true)
        };
        b.output("y", y);
        let expected = "\
graph tiny
  in  x float32 [batch, new, 2]
  /model/norm/Mul = Mul(x, x) -> [batch, new, 2] full
  /model/norm/ReduceMean = ReduceMean { axes: [-1], keep_dims: true }(/model/norm/Mul_output_0) -> [batch, new, 1] full
  /model/norm/Add = Add(/model/norm/ReduceMean_output_0, 1e-6) -> [batch, new, 1] full
  /model/norm/Sqrt = Sqrt(/model/norm/Add_output_0) -> [batch, new, 1] full
  /model/norm/Div = Div(x, /model/norm/Sqrt_output_0) -> [batch, new, 2] full
  /model/norm/Mul_1 = Mul(/model/norm/Div_output_0, model.norm.weight) -> [batch, new, 2] full
  /model/up/MatMul = MatMul(/model/norm/Mul_1_output_0, model.up.weight^T) -> [batch, new, 3]
  /model/up/Add = Add(/model/up/MatMul_output_0, model.up.bias) -> [batch, new, 3]
  out y float32 [batch, new, 3]
";
        assert_eq!(b.finish().unwrap().to_string(), expected);
    }
}
