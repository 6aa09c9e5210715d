/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon and readers of a bench's own. Owns the directory, the processes and the words shared with
 * readers; a bench that is killed leaves no reader (they end with their parent) and a daemon that
 * ends with it too. Readers sum every byte that they take.
 */
#include "private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/message.h"
#include "base/parallel.h"
#include "base/range.h"
#include "generate.h"
#include "progress.h"

#define BLOCK_BYTES	(2U << 20)
#define CHUNK_OF_MAPPED (4U << 20)
#define NEIGHBOUR_BYTES (64U << 20)

int private_find_daemon(const char *wish, char ret_path[4096])
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	static const char *const beside[] = {"dcmemd", "../../daemon/dcmemd", "../sbin/dcmemd"};
	char *slash;

	if (wish) {
		(void)snprintf(ret_path, 4096, "%s", wish);
		return access(wish, X_OK) == 0 ? 0 : message_set(-errno, "%s: %s", wish, strerror(errno));
	}
	path[n < 0 ? 0 : n] = '\0';
	slash = strrchr(path, '/');
	for (unsigned i = 0; slash && i < sizeof(beside) / sizeof(beside[0]); i++) {
		slash[1] = '\0';
		if ((size_t)snprintf(ret_path, 4096, "%s%s", path, beside[i]) < 4096 &&
		    access(ret_path, X_OK) == 0)
			return 0;
	}
	(void)snprintf(ret_path, 4096, "dcmemd");
	return 0;
}

/* --- the model ---------------------------------------------------------------------------------- */

static void draw(void *data, uint64_t done, uint64_t total)
{
	progress_update(data, done, total);
}

/* Matrices of a 1 B model, and of it no more embedding than a matrix: every tensor can be tuned. */
static int make_model(struct private_daemon *daemon, uint64_t n_bytes, bool quiet)
{
	struct generate_options options = {.shape = "llama-1b", .bits = 3.5, .n_shards = 1, .seed = 1,
					   .n_vocab = 2048};
	struct generate_run run = {.n_jobs = parallel_cpu_count(), .progress = draw};
	struct generate_model model;
	struct progress progress;
	int r;

	do {
		options.n_layers++;
		r = generate_model_init(&model, &options);
		if (r)
			return r;
		if (model.n_bytes >= n_bytes)
			break;
		generate_model_deinit(&model);
	} while (true);
	progress_init(&progress, "making a model up", !quiet);
	run.data = &progress;
	r = generate_container(&model, daemon->model, &run);
	progress_end(&progress);
	generate_model_deinit(&model);
	return r;
}

static void remove_tree(const char *path)
{
	DIR *dir = opendir(path);
	const struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		char name[4096];

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		(void)snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
		if (unlink(name) < 0 && errno == EISDIR)
			remove_tree(name);
	}
	if (dir)
		closedir(dir);
	(void)rmdir(path);
}

int private_init(struct private_daemon *daemon, const char *container, uint64_t n_bytes, bool quiet)
{
	const char *base = getenv("TMPDIR");
	char source[128];

	*daemon = (struct private_daemon){.options.size = sizeof(daemon->options)};
	if (!base || strlen(base) > 32)
		base = "/tmp";
	(void)snprintf(daemon->dir, sizeof(daemon->dir), "%s/dcmem-bench-XXXXXX", base);
	if (!mkdtemp(daemon->dir)) {
		int r = message_set(-errno, "%s: %s", daemon->dir, strerror(errno));

		daemon->dir[0] = '\0';
		return r;
	}
	(void)snprintf(daemon->socket, sizeof(daemon->socket), "%s/socket", daemon->dir);
	daemon->options.socket_path = daemon->socket;
	if (container) {
		if (!realpath(container, source) || strlen(source) >= sizeof(daemon->model))
			return message_set(-ENOENT, "%s: no such container", container);
		(void)snprintf(daemon->model, sizeof(daemon->model), "%s", source);
		return 0;
	}
	(void)snprintf(daemon->model, sizeof(daemon->model), "%s/m.dcmem", daemon->dir);
	daemon->made_up = true;
	return make_model(daemon, n_bytes, quiet);
}

void private_deinit(struct private_daemon *daemon)
{
	private_stop(daemon);
	if (daemon->dir[0])
		remove_tree(daemon->dir);
	daemon->dir[0] = '\0';
}

/* --- the daemon --------------------------------------------------------------------------------- */

static int write_config(const struct private_daemon *daemon, const char *config, char path[128])
{
	FILE *file;

	(void)snprintf(path, 128, "%s/dcmemd.json", daemon->dir);
	file = fopen(path, "we");
	if (!file)
		return message_set(-errno, "%s: %s", path, strerror(errno));
	fprintf(file, "{%s%s\"models\": [{\"path\": \"%s\", \"name\": \"m\"}], \"text_socket\": false, "
		      "\"log_level\": \"warning\"}\n",
		config, config[0] ? ", " : "", daemon->model);
	return fclose(file) ? message_set(-errno, "%s: %s", path, strerror(errno)) : 0;
}

static void die_with_parent(pid_t parent)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
}

int private_start(struct private_daemon *daemon, const char *program, const char *config)
{
	char path[128], ready[16], word[6] = "";
	pid_t parent = getpid();
	struct pollfd wait;
	int fds[2], r = write_config(daemon, config, path);

	if (r)
		return r;
	(void)unlink(daemon->socket);
	if (pipe2(fds, 0) < 0)
		return message_set(-errno, "pipe: %s", strerror(errno));
	(void)fflush(NULL);
	daemon->pid = fork();
	if (daemon->pid == 0) {
		die_with_parent(parent);
		(void)close(fds[0]);
		(void)snprintf(ready, sizeof(ready), "%d", fds[1]);
		(void)execlp(program, program, "--socket", daemon->socket, "--config", path,
			     "--ready-fd", ready, (char *)NULL);
		_exit(127);
	}
	(void)close(fds[1]);
	wait = (struct pollfd){.fd = fds[0], .events = POLLIN};
	if (daemon->pid < 0 || poll(&wait, 1, 600000) != 1 || read(fds[0], word, 5) != 5)
		r = message_set(-ECHILD, "%s did not start: is it there, and does the model fit?",
				program);
	(void)close(fds[0]);
	if (r)
		private_stop(daemon);
	return r;
}

void private_stop(struct private_daemon *daemon)
{
	if (daemon->pid > 0) {
		(void)kill(daemon->pid, SIGTERM);
		(void)waitpid(daemon->pid, NULL, 0);
	}
	daemon->pid = 0;
}

int private_command(const struct private_daemon *daemon, const char *command, json_t **ret_reply)
{
	struct dcmem_conn *conn = NULL;
	char *reply = NULL;
	json_t *json;
	int r = dcmem_connect(&daemon->options, &conn);

	if (!r)
		r = dcmem_request(conn, command, &reply);
	if (r)
		message_set(r, "%s: %s", command, dcmem_error());
	dcmem_disconnect(conn);
	if (r)
		return r;
	json = json_loads(reply, 0, NULL);
	dcmem_free(reply);
	if (!json)
		return message_set(-EPROTO, "the daemon's reply is not JSON");
	if (ret_reply)
		*ret_reply = json;
	else
		json_decref(json);
	return 0;
}

/* --- readers ------------------------------------------------------------------------------------ */

static uint64_t sum_of(const void *data, uint64_t n_bytes)
{
	const uint8_t *bytes = data;
	uint64_t sum[4] = {0}, words[4], at = 0;

	for (; at + sizeof(words) <= n_bytes; at += sizeof(words)) {
		memcpy(words, bytes + at, sizeof(words));
		for (unsigned i = 0; i < 4; i++)
			sum[i] += words[i];
	}
	for (; at < n_bytes; at++)
		sum[0] += bytes[at];
	return sum[0] + sum[1] + sum[2] + sum[3];
}

static void take(struct reader_control *control, const void *data, uint64_t n_bytes)
{
	for (uint64_t i = 0; i <= control->passes; i++)
		control->sum += sum_of(data, n_bytes);
	__atomic_store_n(&control->n_bytes, control->n_bytes + n_bytes, __ATOMIC_RELAXED);
}

/* In blocks of rows, as programs do that compute while they read. */
static int take_tensor(struct dcmem *model, uint64_t id, struct reader_control *control)
{
	struct dcmem_tensor tensor;
	struct dcmem_view view;
	uint64_t n_rows;
	int r = dcmem_tensor(model, id, &tensor);

	n_rows = !r && tensor.row_bytes ? max_u64(1, BLOCK_BYTES / tensor.row_bytes) : 1;
	for (uint64_t row = 0; !r && row < tensor.n_rows; row += n_rows) {
		r = dcmem_acquire(model, id, row, min_u64(n_rows, tensor.n_rows - row), &view);
		if (r)
			break;
		take(control, view.data, view.n_bytes);
		dcmem_release(model, &view);
	}
	return r;
}

static enum reader_mode mode_of(const struct reader_control *control)
{
	return __atomic_load_n(&control->mode, __ATOMIC_ACQUIRE);
}

static void be_neighbour(const struct reader_control *control)
{
	char *from = malloc(NEIGHBOUR_BYTES), *to = malloc(NEIGHBOUR_BYTES);

	while (from && to && mode_of(control) == READER_NEIGHBOUR)
		memcpy(to, from, NEIGHBOUR_BYTES);
	free(from);
	free(to);
}

static int read_served(struct dcmem *model, struct reader_control *control, double delay)
{
	uint64_t n = dcmem_n_tensors(model), at = (uint64_t)(delay * (double)n) % n, x = 1;
	struct dcmem_tensor tensor;
	int r = 0;

	while (!r) {
		switch (mode_of(control)) {
		case READER_EXIT:
			return 0;
		case READER_SWEEP:
			r = take_tensor(model, at, control);
			at = (at + 1) % n;
			break;
		case READER_RANDOM:
			x = x * 6364136223846793005ULL + 1442695040888963407ULL;
			r = take_tensor(model, (x >> 33) % max_u64(1, (uint64_t)(control->part * (double)n)),
					control);
			break;
		case READER_NEIGHBOUR:
			be_neighbour(control);
			break;
		default: /* any call lets go of what the daemon wants back */
			r = dcmem_tensor(model, 0, &tensor);
			(void)usleep(2000);
		}
	}
	return r;
}

static int read_mapped(const char *path, struct reader_control *control, double delay)
{
	_cleanup_(cleanup_fd) int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *bytes;
	uint64_t n_chunks, at;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size < CHUNK_OF_MAPPED)
		return -EINVAL;
	bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (bytes == MAP_FAILED)
		return -errno;
	n_chunks = (uint64_t)st.st_size / CHUNK_OF_MAPPED;
	at = (uint64_t)(delay * (double)n_chunks) % n_chunks;
	while (mode_of(control) != READER_EXIT) {
		if (mode_of(control) == READER_SWEEP) {
			take(control, bytes + at * CHUNK_OF_MAPPED, CHUNK_OF_MAPPED);
			at = (at + 1) % n_chunks;
		} else {
			(void)usleep(2000);
		}
	}
	(void)munmap(bytes, (size_t)st.st_size);
	return 0;
}

static int be_reader(struct reader_control *control, const struct private_daemon *daemon,
		     enum reader_way way, const char *path, double delay)
{
	struct dcmem_options options = daemon->options;
	struct dcmem *model = NULL;
	int r;

	if (way == READER_MAPPED)
		return read_mapped(path, control, delay);
	options.flags = way == READER_PRIVATE ? DCMEM_OPEN_LOCAL : 0;
	r = dcmem_open("m", &options, &model);
	if (!r)
		r = read_served(model, control, delay);
	if (r)
		fprintf(stderr, "dcmem bench: a reader failed: %s\n", dcmem_error());
	dcmem_close(model);
	return r;
}

int reader_start(struct reader *reader, const struct private_daemon *daemon, enum reader_way way,
		 const char *path, double delay)
{
	pid_t parent = getpid();

	reader->control = mmap(NULL, sizeof(*reader->control), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (reader->control == MAP_FAILED) {
		reader->control = NULL;
		return message_set(-ENOMEM, "no memory for a reader");
	}
	(void)fflush(NULL);
	reader->pid = fork();
	if (reader->pid == 0) {
		int r;

		die_with_parent(parent);
		r = be_reader(reader->control, daemon, way, path, delay);
		__atomic_store_n(&reader->control->failed, (uint32_t)(r < 0 ? -r : r),
				 __ATOMIC_RELAXED);
		_exit(r != 0);
	}
	return reader->pid < 0 ? message_set(-errno, "fork: %s", strerror(errno)) : 0;
}

void reader_stop(struct reader *reader)
{
	if (!reader->control)
		return;
	reader_set(reader, READER_EXIT);
	if (reader->pid > 0)
		(void)waitpid(reader->pid, NULL, 0);
	(void)munmap(reader->control, sizeof(*reader->control));
	*reader = (struct reader){0};
}

void reader_set(const struct reader *reader, enum reader_mode mode)
{
	__atomic_store_n(&reader->control->mode, mode, __ATOMIC_RELEASE);
}

uint64_t reader_bytes(const struct reader *reader)
{
	return __atomic_load_n(&reader->control->n_bytes, __ATOMIC_RELAXED);
}
