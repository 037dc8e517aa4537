// The packed runtime of qat, for C and whatever calls C. Link libqatc.a.
//
// A model is opened once and may be shared by any number of sessions and threads. A session is a text that is read and written: it has
// keys and values of its own and a thread that works on it. Calls on one session take turns: while one is under way another gets
// QAT_STATUS_BUSY, but qat_session_cancel may come from any thread at any time.
//
// What can fail gives a qat_status, and where `error` is not NULL a message there, to be freed by qat_string_free; on success *error is
// left as it was. Texts are UTF-8 and end with a zero. Pointers given in are read during the call only.
//
// Made of the Rust source by cbindgen: capi/tests/header.rs.

#ifndef QAT_H
#define QAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// How a call ended.
typedef enum {
  // As asked.
  QAT_STATUS_OK = 0,
  // An argument is NULL, no UTF-8, out of its range, or too much for the context.
  QAT_STATUS_INVALID = 1,
  // Files of the model are missing, damaged or of an unknown kind.
  QAT_STATUS_MODEL = 2,
  // Another call works on this session.
  QAT_STATUS_BUSY = 3,
  // A mistake of this library. The session should be closed.
  QAT_STATUS_INTERNAL = 4,
} qat_status;

// Why an answer ended.
typedef enum {
  // With a stop token or a stop word.
  QAT_END_STOP = 0,
  // With as many tokens as were asked for, or a full context.
  QAT_END_LENGTH = 1,
  // It was cancelled, or the callback had enough.
  QAT_END_CANCELLED = 2,
} qat_end;

// A model that is open.
typedef struct qat_model qat_model;

// A text that is read and written.
typedef struct qat_session qat_session;

// What a model is.
typedef struct {
  // Tokens of the vocabulary.
  uint64_t vocab;
  // Longest context, in tokens.
  uint64_t context;
  // Layers of the model.
  uint64_t layers;
  // Bytes of the files that hold the weights.
  uint64_t file_bytes;
  // Stored bits of all tensors per weight, with scales, embeddings and norms.
  double bits_per_weight;
  // Whether it has a chat template.
  bool has_chat;
} qat_info;

// How an answer is written. qat_options_default() gives values to start from.
typedef struct {
  // Most tokens to write.
  uint64_t most;
  // Logits are divided by this; 0 takes the likeliest token always.
  float temperature;
  // So many of the likeliest tokens are considered; 0 for all.
  uint64_t top_k;
  // Of those, the fewest whose probabilities sum to at least this.
  float top_p;
  // And of those, the ones at least this times as likely as the likeliest.
  float min_p;
  // Logits of the last `repetition_last` tokens are lowered by this factor; 1 does nothing.
  float repetition_penalty;
  // Tokens that the penalty looks back.
  uint64_t repetition_last;
  // Of the random numbers.
  uint64_t seed;
  // Texts that end the answer, which they don't belong to.
  const char *const *stops;
  // How many `stops` there are.
  size_t stop_count;
} qat_options;

// Hears a piece of the answer: `length` bytes of whole UTF-8 characters, and a zero behind them. Called on the thread that waits for the
// answer. Gives 0 to go on, anything else to end the answer. It may cancel its session, but not close it.
typedef int (*qat_on_text)(void *user, const char *text, size_t length);

// What an answer took.
typedef struct {
  // Tokens that were read for it.
  uint64_t prompt_tokens;
  // Tokens of the prompt that had been read before.
  uint64_t reused_tokens;
  // Tokens that were written, without one that ended it.
  uint64_t new_tokens;
  // Tokens that the session remembers now.
  uint64_t position;
  // Seconds from the call to the first token.
  double first_seconds;
  // Seconds from there to the last one.
  double rest_seconds;
  // Why there are no more.
  qat_end end;
} qat_usage;

// What somebody said.
typedef struct {
  // "system", "user" or "assistant".
  const char *role;
  // What.
  const char *content;
} qat_message;

// What is held in memory; 0 where the system doesn't tell.
typedef struct {
  // Resident bytes of this process now, mapped files included.
  uint64_t resident_bytes;
  // The most they ever were.
  uint64_t peak_bytes;
} qat_memory;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of this library; never freed.
const char *qat_version(void);

// Frees a text that this library gave; NULL does nothing.
void qat_string_free(char *text);

// Opens the model in the directory or file `path` on `device`: "auto" (as NULL), "cpu" or "metal".
qat_status qat_model_open(const char *path, const char *device, qat_model **model, char **error);

// Closes a model; NULL does nothing. Sessions that are open keep what they need of it.
void qat_model_close(qat_model *model);

// Says what the model is.
qat_status qat_model_info(const qat_model *model, qat_info *info, char **error);

// What the model runs on, as "cpu (avx512vnni)" or "metal (Apple M2, Apple 8)", to be freed by qat_string_free; NULL if model is.
char *qat_model_device(const qat_model *model);

// Begins a text of up to `context` tokens (0: 4096, or the model's longest if that is less), keys and values kept as `kv`: "f16" (as
// NULL), "int8", "int4" or "f32".
qat_status qat_session_open(const qat_model *model,
                            uint64_t context,
                            const char *kv,
                            qat_session **session,
                            char **error);

// Closes a session, after the end of what works on it; NULL does nothing.
void qat_session_close(qat_session *session);

// How an answer is written unless something else is wanted: up to 512 tokens, each the likeliest one.
qat_options qat_options_default(void);

// Reads `prompt` after all that the session has read and written, and writes on; on_text hears it (NULL: nobody). `options` and `usage`
// may be NULL. An answer that is cancelled is QAT_STATUS_OK too; usage->end says so.
qat_status qat_session_write(qat_session *session,
                             const char *prompt,
                             const qat_options *options,
                             qat_on_text on_text,
                             void *user,
                             qat_usage *usage,
                             char **error);

// Answers a whole conversation of `count` messages, written as the model's chat template has it. What the session has read of it already
// is not read again, so that each turn costs its own tokens. Otherwise as qat_session_write.
qat_status qat_session_chat(qat_session *session,
                            const qat_message *messages,
                            size_t count,
                            const qat_options *options,
                            qat_on_text on_text,
                            void *user,
                            qat_usage *usage,
                            char **error);

// Ends the answer that is being written on another thread, if one is: within a token, or within 256 tokens of a prompt. NULL does
// nothing.
void qat_session_cancel(const qat_session *session);

// Forgets all that the session has read and written.
qat_status qat_session_reset(qat_session *session, char **error);

// What this process holds in memory.
qat_memory qat_memory_in_use(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* QAT_H */
