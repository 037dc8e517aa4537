// Everything qat.h offers, as a program in C uses it: journey PACKED FLOAT. Ends with 0 if all of it holds.
#include "qat.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);  \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

// What a call wrote, and when to stop it.
typedef struct {
  char text[1 << 16];
  size_t length;
  int pieces;
  int enough;         // pieces after which the callback wants no more; 0 for never
  qat_session *cancel; // cancelled from within after the first piece
} heard;

static int hear(void *user, const char *text, size_t length) {
  heard *to = user;
  CHECK(strlen(text) == length && length > 0);
  CHECK(to->length + length < sizeof to->text);
  memcpy(to->text + to->length, text, length + 1);
  to->length += length;
  to->pieces++;
  if (to->cancel) qat_session_cancel(to->cancel);
  return to->enough && to->pieces >= to->enough;
}

static qat_session *opened(qat_model *model, uint64_t context, const char *kv) {
  char *error = NULL;
  qat_session *session = NULL;
  qat_status status = qat_session_open(model, context, kv, &session, &error);
  if (error) fprintf(stderr, "%s\n", error);
  CHECK(status == QAT_STATUS_OK && session && !error);
  return session;
}

static qat_usage wrote(qat_session *session, const char *prompt, const qat_options *options, heard *to) {
  char *error = NULL;
  qat_usage usage;
  qat_status status = qat_session_write(session, prompt, options, hear, to, &usage, &error);
  if (error) fprintf(stderr, "%s\n", error);
  CHECK(status == QAT_STATUS_OK && !error);
  return usage;
}

// Expects that a call failed with `status` and said `word`.
static void refused(qat_status got, qat_status status, char **error, const char *word) {
  CHECK(got == status && *error);
  if (!strstr(*error, word)) fprintf(stderr, "%s\n", *error);
  CHECK(strstr(*error, word));
  qat_string_free(*error);
  *error = NULL;
}

static void reads_and_writes(qat_model *model) {
  qat_session *session = opened(model, 256, NULL);
  qat_options options = qat_options_default();
  options.most = 24;
  heard first = {.length = 0}, again = {.length = 0}, more = {.length = 0};
  qat_usage usage = wrote(session, "Mia found", &options, &first);
  CHECK(usage.new_tokens > 0 && usage.new_tokens <= 24 && usage.prompt_tokens > 0 && usage.reused_tokens == 0);
  CHECK(usage.end == QAT_END_LENGTH || usage.end == QAT_END_STOP);
  CHECK(first.length > 10 && usage.first_seconds > 0 && usage.rest_seconds >= 0);

  // The same text again is the same answer; a text goes on where it ended.
  CHECK(qat_session_reset(session, NULL) == QAT_STATUS_OK);
  qat_usage same = wrote(session, "Mia found", &options, &again);
  CHECK(!strcmp(first.text, again.text) && same.position == usage.position);
  qat_usage next = wrote(session, " Then", &options, &more);
  CHECK(next.reused_tokens == same.position && next.position > same.position);

  // Half of the tokens and then nothing but to go on: the same text.
  CHECK(qat_session_reset(session, NULL) == QAT_STATUS_OK);
  heard halves = {.length = 0};
  options.most = 12;
  wrote(session, "Mia found", &options, &halves);
  wrote(session, "", &options, &halves);
  CHECK(!strncmp(first.text, halves.text, halves.length < first.length ? halves.length : first.length));
  qat_session_close(session);

  // Seeds: the same twice, and not always the likeliest.
  heard drawn[3] = {{.length = 0}, {.length = 0}, {.length = 0}};
  for (int i = 0; i < 3; i++) {
    session = opened(model, 256, "int8");
    options = qat_options_default();
    options.most = 40;
    options.temperature = 1.5f;
    options.repetition_penalty = 1.1f;
    options.seed = i == 2 ? 8 : 7;
    wrote(session, "Mia found", &options, &drawn[i]);
    qat_session_close(session);
  }
  CHECK(!strcmp(drawn[0].text, drawn[1].text) && strcmp(drawn[0].text, drawn[2].text));

  // A stop word ends the answer, and is no part of it.
  session = opened(model, 256, NULL);
  options = qat_options_default();
  char word[8] = {0};
  memcpy(word, first.text + 4, 3);
  const char *stops[] = {"never said", word};
  options.stops = stops;
  options.stop_count = 2;
  heard stopped = {.length = 0};
  usage = wrote(session, "Mia found", &options, &stopped);
  CHECK(usage.end == QAT_END_STOP && !strstr(stopped.text, word) && stopped.length <= 4);
  qat_session_close(session);
}

static void chats(qat_model *model) {
  qat_info info;
  CHECK(qat_model_info(model, &info, NULL) == QAT_STATUS_OK && info.has_chat);
  qat_session *session = opened(model, 0, NULL);
  qat_options options = qat_options_default();
  options.most = 16;
  heard answer = {.length = 0}, alone = {.length = 0}, second = {.length = 0};
  qat_message messages[3] = {{"user", "Who found the key?"}, {"assistant", NULL}, {"user", "And then?"}};
  qat_usage usage;
  char *error = NULL;
  CHECK(qat_session_chat(session, messages, 1, &options, hear, &answer, &usage, NULL) == QAT_STATUS_OK);
  CHECK(usage.reused_tokens == 0 && answer.length > 0);
  messages[1].content = answer.text;
  CHECK(qat_session_chat(session, messages, 3, &options, hear, &second, &usage, NULL) == QAT_STATUS_OK);
  uint64_t read = usage.prompt_tokens, reused = usage.reused_tokens;
  CHECK(reused > 0);

  // Without a past: the same answer, and everything is read.
  CHECK(qat_session_reset(session, NULL) == QAT_STATUS_OK);
  CHECK(qat_session_chat(session, messages, 3, &options, hear, &alone, &usage, NULL) == QAT_STATUS_OK);
  CHECK(!strcmp(second.text, alone.text) && usage.reused_tokens == 0 && usage.prompt_tokens == read + reused);
  messages[1].role = NULL;
  refused(qat_session_chat(session, messages, 3, NULL, NULL, NULL, NULL, &error), QAT_STATUS_INVALID, &error, "role is NULL");
  qat_session_close(session);
}

typedef struct {
  qat_session *session;
  qat_status status;
  qat_usage usage;
  atomic_int has_begun, may_go_on;
} job;

static int waits(void *user, const char *text, size_t length) {
  job *mine = user;
  CHECK(strlen(text) == length);
  atomic_store(&mine->has_begun, 1);
  while (!atomic_load(&mine->may_go_on)) sched_yield();
  return 0;
}

static void *works(void *given) {
  job *mine = given;
  mine->status = qat_session_write(mine->session, "Mia", NULL, waits, mine, &mine->usage, NULL);
  return NULL;
}

static void stops_when_told(qat_model *model) {
  // By the callback, by a cancel from within it, and from another thread; the session goes on each time.
  qat_session *session = opened(model, 0, NULL);
  heard answer = {.enough = 3};
  qat_usage usage = wrote(session, "Mia", NULL, &answer);
  CHECK(usage.end == QAT_END_CANCELLED && answer.pieces == 3);
  heard inside = {.cancel = session};
  usage = wrote(session, "", NULL, &inside);
  CHECK(usage.end == QAT_END_CANCELLED && inside.pieces == 1);
  CHECK(qat_session_reset(session, NULL) == QAT_STATUS_OK);

  // While it works others are told to wait, and a cancel arrives.
  job mine = {.session = session};
  pthread_t thread;
  CHECK(!pthread_create(&thread, NULL, works, &mine));
  while (!atomic_load(&mine.has_begun)) sched_yield();
  char *error = NULL;
  refused(qat_session_reset(session, &error), QAT_STATUS_BUSY, &error, "another call works");
  qat_session_cancel(session);
  atomic_store(&mine.may_go_on, 1);
  CHECK(!pthread_join(thread, NULL));
  CHECK(mine.status == QAT_STATUS_OK && mine.usage.end == QAT_END_CANCELLED);
  heard after = {.enough = 1};
  wrote(session, "Mia", NULL, &after);
  CHECK(after.pieces == 1);
  qat_session_close(session);
}

static void refuses(qat_model *model, const char *packed) {
  char *error = NULL;
  qat_model *none = NULL;
  qat_session *session = NULL;
  refused(qat_model_open("/no/such/model", NULL, &none, &error), QAT_STATUS_MODEL, &error, "/no/such/model");
  refused(qat_model_open(NULL, NULL, &none, &error), QAT_STATUS_INVALID, &error, "path is NULL");
  refused(qat_model_open(packed, "gpu", &none, &error), QAT_STATUS_INVALID, &error, "gpu");
  refused(qat_model_open(packed, "cpu", NULL, &error), QAT_STATUS_INVALID, &error, "model is NULL");
  refused(qat_model_open("a\xff", NULL, &none, &error), QAT_STATUS_INVALID, &error, "UTF-8");
  CHECK(!none && qat_model_open(NULL, NULL, NULL, NULL) == QAT_STATUS_INVALID);
  refused(qat_session_open(model, 0, "f8", &session, &error), QAT_STATUS_INVALID, &error, "f8");
  refused(qat_session_open(model, 1 << 30, NULL, &session, &error), QAT_STATUS_INVALID, &error, "context");
  refused(qat_session_open(NULL, 0, NULL, &session, &error), QAT_STATUS_INVALID, &error, "model is NULL");
  CHECK(!session && !qat_model_device(NULL));
  session = opened(model, 32, "int4");
  qat_options options = qat_options_default();
  options.temperature = NAN;
  refused(qat_session_write(session, "Mia", &options, NULL, NULL, NULL, &error), QAT_STATUS_INVALID, &error, "temperature");
  options = qat_options_default();
  options.repetition_penalty = 0;
  refused(qat_session_write(session, "Mia", &options, NULL, NULL, NULL, &error), QAT_STATUS_INVALID, &error, "penalty");
  options = qat_options_default();
  options.stop_count = 1;
  refused(qat_session_write(session, "Mia", &options, NULL, NULL, NULL, &error), QAT_STATUS_INVALID, &error, "stops is NULL");
  refused(qat_session_write(session, "", NULL, NULL, NULL, NULL, &error), QAT_STATUS_INVALID, &error, "empty");
  char *lengthy = calloc(1, 4001);
  CHECK(lengthy);
  for (int i = 0; i < 1000; i++) memcpy(lengthy + 4 * i, "Mia ", 4);
  refused(qat_session_write(session, lengthy, NULL, NULL, NULL, NULL, &error), QAT_STATUS_INVALID, &error, "context of 32");
  free(lengthy);
  // None of it did any harm, nobody has to listen, and a full context ends an answer.
  qat_usage usage;
  CHECK(qat_session_write(session, "Mia", NULL, NULL, NULL, &usage, NULL) == QAT_STATUS_OK);
  CHECK(usage.end == QAT_END_LENGTH || usage.end == QAT_END_STOP);
  CHECK(usage.position < 32);
  qat_session_close(session);
  qat_session_close(NULL);
  qat_model_close(NULL);
  qat_string_free(NULL);
  qat_session_cancel(NULL);
}

int main(int count, char **arguments) {
  CHECK(count == 3);
  CHECK(strchr(qat_version(), '.'));
  qat_memory before = qat_memory_in_use();
  qat_model *model = NULL;
  char *error = NULL;
  qat_status status = qat_model_open(arguments[1], "cpu", &model, &error);
  if (error) fprintf(stderr, "%s\n", error);
  CHECK(status == QAT_STATUS_OK && model);
  qat_info info;
  CHECK(qat_model_info(model, &info, &error) == QAT_STATUS_OK);
  CHECK(info.vocab > 100 && info.context >= 256 && info.layers > 0 && info.file_bytes > 1000 && info.bits_per_weight < 8);
  char *device = qat_model_device(model);
  CHECK(device && !strncmp(device, "cpu (", 5));
  printf("%s: %llu layers, %.2f bits per weight, on %s\n", qat_version(), (unsigned long long)info.layers, info.bits_per_weight, device);
  qat_string_free(device);
  qat_memory with = qat_memory_in_use();
  CHECK(with.resident_bytes > before.resident_bytes && with.peak_bytes >= with.resident_bytes);

  reads_and_writes(model);
  chats(model);
  stops_when_told(model);
  refuses(model, arguments[1]);

  // A session outlives the model it was opened from.
  qat_session *session = opened(model, 64, "f32");
  qat_model_close(model);
  heard answer = {.enough = 2};
  wrote(session, "Mia", NULL, &answer);
  qat_session_close(session);

  // A float model has no template here: a chat is refused, plain text is not.
  CHECK(qat_model_open(arguments[2], NULL, &model, NULL) == QAT_STATUS_OK);
  session = opened(model, 0, NULL);
  qat_message message = {"user", "Hello"};
  refused(qat_session_chat(session, &message, 1, NULL, NULL, NULL, NULL, &error), QAT_STATUS_INVALID, &error, "chat template");
  qat_model_close(model);
  qat_session_close(session);
  puts("all of it holds");
  return 0;
}
