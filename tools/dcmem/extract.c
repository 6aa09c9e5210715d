/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes below one directory alone: names were refused when the container was opened if they are
 * absolute or have empty, "." or ".." parts, and no symbolic link is ever followed. A file that fails
 * to verify is removed, as are the ones before it.
 */
#include "extract.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "model/restore.h"
#include "progress.h"

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

int extract(const struct container *container, const char *output, const char *label, bool quiet,
	    int (*finish)(void *data, const char *output), void *data, uint64_t *ret_bytes)
{
	struct sigaction action = { .sa_handler = stop };
	struct unpack unpack = { .dir_fd = -1, .fd = -1 };
	bool made = false;
	int r;

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	progress_init(&unpack.progress, label, !quiet);
	for (uint64_t i = 0; i < container->index.n_files; i++) {
		const struct container_file *file;

		if (index_file(&container->index, i, &file) == 0)
			unpack.total += file->file_bytes;
	}
	r = open_output(output, &made, &unpack.dir_fd);
	if (r)
		return r;
	r = unpack_all(&unpack, container);
	progress_end(&unpack.progress);
	if (!r && finish) {
		r = finish(data, output);
		if (r) {
			char text[1024];

			snprintf(text, sizeof(text), "%s", message_get());
			remove_files(&unpack, &container->index, container->index.n_files);
			r = message_set(r, "%s", text);
		}
	}
	if (r && made)
		(void)rmdir(output);
	unpack.dir_fd = close_fd(unpack.dir_fd);
	if (!r)
		*ret_bytes = unpack.done;
	return r;
}
