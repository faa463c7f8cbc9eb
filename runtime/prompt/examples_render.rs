use prompt::text::*;
fn main(){ let mut m=vec![TemplateMessage{role:"user",content:TemplateContent::Text(" What is it?\n".into())},TemplateMessage{role:"assistant",content:TemplateContent::Text("A <b>cat</b>.".into())},TemplateMessage{role:"user",content:TemplateContent::Text("Why 'so'?".into())}];
let sp=[("bos_token","<s>"),("eos_token","</s>")].iter().map(|(a,b)|(a.to_string(),b.to_string())).collect();
let sys=TemplateMessage{role:"system",content:TemplateContent::Text("Be brief.".into())};
for f in std::env::args().skip(1){ let s=std::fs::read_to_string(&f).unwrap(); for k in 0..2 { if k==1 {m.insert(0,sys.clone());}
 let t=std::time::Instant::now(); let r=ChatTemplate::parse(&f,&s,&sp).and_then(|t|t.render(&m,true)); let r=match r {Ok(x)=>x,Err(e)=>format!("ERR {e}")}; eprintln!("{f} {:?}",t.elapsed()); println!("{}",serde_json::to_string(&(f.clone(),k,r)).unwrap()); if k==1 {m.remove(0);} } } }
