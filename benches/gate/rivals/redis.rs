//! Redis: a Lua script per request, over one pipelined connection.

use std::collections::VecDeque;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::{Counter, GRANTED, Run};

/// Counts within the limit, once per key; keys are kept for a day, as is usual.
const SCRIPT: &str = "
local before = redis.call('GET', KEYS[2])
if before then return tonumber(before) end
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local allowed = 0
if used + tonumber(ARGV[1]) <= tonumber(ARGV[2]) then
  redis.call('INCRBY', KEYS[1], ARGV[1])
  allowed = 1
end
redis.call('SET', KEYS[2], allowed, 'EX', 86400)
return allowed";

struct Command {
    text: Vec<u8>,
    reply: oneshot::Sender<String>,
}

/// The way to Redis.
pub struct Redis {
    commands: mpsc::UnboundedSender<Command>,
    /// What Redis calls the script.
    sha: String,
}

impl Redis {
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let (commands, waiting) = mpsc::unbounded_channel();
        let (asked, replies) = mpsc::unbounded_channel();
        tokio::spawn(write(writer, waiting, asked));
        tokio::spawn(read(BufReader::new(reader), replies));
        let mut redis = Self { commands, sha: String::new() };
        redis.sha = redis.call(&["SCRIPT", "LOAD", SCRIPT]).await?;
        Ok(redis)
    }

    async fn call(&self, words: &[&str]) -> Result<String> {
        let mut text = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            text.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { text, reply }).ok().context("Redis is gone")?;
        let answer = answer.await.context("Redis is gone")?;
        ensure!(!answer.starts_with('-'), "Redis answered {answer}");
        Ok(answer)
    }
}

impl Counter for Redis {
    async fn count(&self, run: Run) -> Result<bool> {
        let counter = format!("used:{}", run.customer_id);
        let key = format!("run:{}:{}", run.customer_id, run.idempotency_key);
        let (value, granted) = (run.required_balance.to_string(), GRANTED.to_string());
        let words = ["EVALSHA", &self.sha, "2", &counter, &key, &value, &granted];
        Ok(self.call(&words).await? == "1")
    }
}

/// Sends whatever waits in one go.
async fn write(
    mut writer: OwnedWriteHalf,
    mut waiting: mpsc::UnboundedReceiver<Command>,
    asked: mpsc::UnboundedSender<VecDeque<oneshot::Sender<String>>>,
) -> Result<()> {
    let mut taken = Vec::new();
    let mut text = Vec::new();
    while waiting.recv_many(&mut taken, 1024).await > 0 {
        text.clear();
        let mut replies = VecDeque::with_capacity(taken.len());
        for command in taken.drain(..) {
            text.extend_from_slice(&command.text);
            replies.push_back(command.reply);
        }
        asked.send(replies).ok().context("nobody reads")?;
        writer.write_all(&text).await?;
    }
    Ok(())
}

/// Hands out answers in the order of the questions.
async fn read(
    mut reader: BufReader<OwnedReadHalf>,
    mut asked: mpsc::UnboundedReceiver<VecDeque<oneshot::Sender<String>>>,
) -> Result<()> {
    while let Some(replies) = asked.recv().await {
        for reply in replies {
            let _ = reply.send(answer(&mut reader).await?); // a caller that hung up wants none
        }
    }
    Ok(())
}

/// One reply in Redis's protocol: a number, a string of stated length, or an error with its `-`.
async fn answer(reader: &mut BufReader<OwnedReadHalf>) -> Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let line = line.trim_end();
    match line.split_at_checked(1) {
        Some((":", number)) => Ok(number.to_owned()),
        Some(("-", _)) => Ok(line.to_owned()),
        Some(("$", length)) => {
            let mut text = vec![0; length.parse::<usize>()? + 2];
            reader.read_exact(&mut text).await?;
            Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
        }
        _ => bail!("Redis answered {line:?}"),
    }
}
