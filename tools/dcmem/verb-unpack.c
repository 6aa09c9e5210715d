/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem unpack`. Writes below DIR alone: names were refused when the container was opened if they
 * are absolute or have empty, "." or ".." parts, and no symbolic link is ever followed. A file that
 * fails to verify is removed, as are the ones before it.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "json-out.h"
#include "progress.h"
#include "model/restore.h"
#include "table.h"
#include "verb.h"

/* Any thread may run the handler; lock-free atomics are safe in it. */
static atomic_bool stopped;

static void stop(int signal_number)
{
	atomic_store(&stopped, true);
}

struct unpack {
	int dir_fd;
	struct progress progress;
	uint64_t done, total;
	int fd; /* of the file being written */
};

static int help(void)
{
	printf("Usage: dcmem unpack IN -o DIR [--json] [--quiet]\n\n"
	       "Restores the files that a container was packed from, byte for byte, and checks each\n"
	       "against its hash. DIR must not exist, or be empty; after a failure it is empty.\n\n"
	       "  -o, --output DIR  where to\n"
	       "  --json            one JSON document instead of a line\n"
	       "  --quiet           no line, no progress bar\n\n"
	       "Example: the very model again:\n\n"
	       "  dcmem unpack my-model.dcmem -o restored && diff -r my-model restored\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the container is damaged.\n");
	return verb_flush("unpack");
}

static int write_bytes(void *data, const void *bytes, size_t n_bytes, uint64_t offset)
{
	struct unpack *unpack = data;
	int r = atomic_load(&stopped) ? message_set(-EINTR, "stopped by a signal") :
			  io_write_at(unpack->fd, bytes, n_bytes, offset);

	if (r)
		return r == -EINTR ? r : message_set(r, "cannot write at byte %llu: %s",
						     (unsigned long long)offset, strerror(-r));
	unpack->done += n_bytes;
	progress_update(&unpack->progress, unpack->done, unpack->total);
	return 0;
}

/* Opens the directory that `name` lies in, making it; *ret_last is the name inside. */
static int open_parent(int dir_fd, const char *name, int *ret_fd, const char **ret_last)
{
	_cleanup_(cleanup_memory) char *part = memory_strdup(name);
	_cleanup_(cleanup_fd) int fd = dup(dir_fd);
	char *at = part, *slash;

	if (!part || fd < 0)
		return message_set(part ? -errno : -ENOMEM, "%s: cannot open its directory", name);
	while ((slash = strchr(at, '/'))) {
		int next;

		*slash = '\0';
		if (mkdirat(fd, at, 0777) < 0 && errno != EEXIST)
			return message_set(-errno, "%s: cannot make its directory: %s", name,
					   strerror(errno));
		next = openat(fd, at, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (next < 0)
			return message_set(-errno, "%s: cannot open its directory: %s", name,
					   strerror(errno));
		close_fd(fd);
		fd = next;
		at = slash + 1;
	}
	*ret_last = name + (at - part);
	*ret_fd = take_fd(&fd);
	return 0;
}

static int unpack_file(struct unpack *unpack, struct restore *restore, uint64_t i, const char *name)
{
	const struct restore_sink sink = { .write = write_bytes, .data = unpack };
	_cleanup_(cleanup_fd) int parent = -1;
	_cleanup_(cleanup_fd) int fd = -1;
	const char *last = name;
	int r = open_parent(unpack->dir_fd, name, &parent, &last);

	if (r)
		return r;
	fd = openat(parent, last, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
	if (fd < 0)
		return message_set(-errno, "%s: cannot create: %s", name, strerror(errno));
	unpack->fd = fd;
	r = restore_file(restore, i, &sink);
	if (!r && fsync(fd) < 0)
		r = message_set(-errno, "%s: cannot sync: %s", name, strerror(errno));
	return r;
}

/* Removes what was made, files first and then directories from the innermost. */
static void remove_files(const struct unpack *unpack, const struct index *index, uint64_t n_files)
{
	for (uint64_t i = 0; i < n_files; i++) {
		_cleanup_(cleanup_memory) char *path = NULL;
		const struct container_file *file;
		const char *name;
		char *slash;

		if (index_file(index, i, &file) || index_file_name(index, file, &name))
			continue;
		(void)unlinkat(unpack->dir_fd, name, 0);
		path = memory_strdup(name);
		while (path && (slash = strrchr(path, '/'))) {
			*slash = '\0';
			(void)unlinkat(unpack->dir_fd, path, AT_REMOVEDIR);
		}
	}
}

static int unpack_all(struct unpack *unpack, const struct container *container)
{
	struct restore *restore = NULL;
	uint64_t i = 0;
	int r = restore_new(&restore, container, restore_cpu_count());

	for (; !r && i < container->index.n_files; i++) {
		const struct container_file *file;
		const char *name;

		r = index_file(&container->index, i, &file);
		if (!r)
			r = index_file_name(&container->index, file, &name);
		if (!r)
			r = unpack_file(unpack, restore, i, name);
	}
	restore = restore_free(restore);
	if (r) {
		char text[1024];

		snprintf(text, sizeof(text), "%s", message_get());
		remove_files(unpack, &container->index, i);
		return message_set(r, "%s", text);
	}
	return 0;
}

static int open_output(const char *path, bool *ret_made, int *ret_fd)
{
	_cleanup_(cleanup_fd) int fd = -1;
	bool made = mkdir(path, 0777) == 0;

	if (!made && errno != EEXIST)
		return message_set(-errno, "%s: cannot make the directory: %s", path,
				   strerror(errno));
	/* rmdir() and mkdir() again: the one portable test of emptiness without a race. */
	if (!made && (rmdir(path) < 0 || mkdir(path, 0777) < 0))
		return message_set(-errno, "%s: must not exist, or be an empty directory: %s", path,
				   strerror(errno));
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return message_set(-errno, "%s: cannot open: %s", path, strerror(errno));
	*ret_made = made;
	*ret_fd = take_fd(&fd);
	return 0;
}

static void report(const struct unpack *unpack, const char *output, uint64_t n_files, bool json)
{
	struct json_out out;
	char text[24];

	if (!json) {
		printf("%s: %llu files, %s, every hash right\n", output,
		       (unsigned long long)n_files, table_bytes(unpack->done, text));
		return;
	}
	json_out_init(&out, stdout);
	json_out_object(&out, NULL);
	json_out_string(&out, "path", output);
	json_out_u64(&out, "n_files", n_files);
	json_out_u64(&out, "n_bytes", unpack->done);
	json_out_end(&out, '}');
}

static int run(const char *input, const char *output, bool json, bool quiet)
{
	struct sigaction action = { .sa_handler = stop };
	struct unpack unpack = { .dir_fd = -1, .fd = -1 };
	struct container container;
	bool made = false;
	int r = container_open(&container, input);

	if (r)
		return r;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	progress_init(&unpack.progress, "unpacking", !quiet);
	for (uint64_t i = 0; i < container.index.n_files; i++) {
		const struct container_file *file;

		if (index_file(&container.index, i, &file) == 0)
			unpack.total += file->file_bytes;
	}
	r = open_output(output, &made, &unpack.dir_fd);
	if (!r) {
		r = unpack_all(&unpack, &container);
		progress_end(&unpack.progress);
		if (r && made)
			(void)rmdir(output);
		unpack.dir_fd = close_fd(unpack.dir_fd);
	}
	if (!r && (json || !quiet))
		report(&unpack, output, container.index.n_files, json);
	container_close(&container);
	return r;
}

int verb_unpack(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "output", required_argument, NULL, 'o' },
		{ "json", no_argument, NULL, 'J' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *output = NULL;
	bool json = false, quiet = false;
	int c, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:h", long_options, NULL)) != -1) {
		if (c == 'h')
			return help();
		if (c == '?')
			return verb_usage("unpack", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		if (c == 'o')
			output = optarg;
		json |= c == 'J';
		quiet |= c == 'q';
	}
	if (argc - optind != 1 || !output)
		return verb_usage("unpack", "needs one IN and -o DIR");
	r = run(argv[optind], output, json, quiet);
	return r ? verb_failure("unpack", r, message_get()) : verb_flush("unpack");
}
