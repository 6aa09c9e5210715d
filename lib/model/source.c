/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the scan of what is to be packed. Symbolic links to regular files are followed (model caches
 * are made of them); links to directories, devices, FIFOs and sockets are refused, and nothing is
 * opened in a way that could block. Sizes and times are remembered, so that a file that changes
 * while it is packed is an error instead of a container of mixed bytes. One thread.
 */
#include "model/source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"

#define MAX_DEPTH	32		   /* directories below the source: untuned */
#define MAX_INDEX_BYTES SAFETENSORS_MAX_HEADER /* the index is about as long as the headers */
#define INDEX_SUFFIX	".safetensors.index.json"

static char *path_join(const char *directory, const char *name)
{
	size_t n = strlen(directory) + strlen(name) + 2;
	char *path = memory_alloc(n);

	if (path)
		snprintf(path, n, "%s%s%s", directory, *directory ? "/" : "", name);
	return path;
}

static bool has_suffix(const char *name, const char *suffix)
{
	size_t n = strlen(name), m = strlen(suffix);

	return n >= m && strcmp(name + n - m, suffix) == 0;
}

static int open_regular(const char *path, int *ret_fd, struct stat *ret_stat)
{
	_cleanup_(cleanup_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return message_set(-errno, "%s: cannot open: %s", path, strerror(errno));
	if (fstat(fd, ret_stat) < 0)
		return message_set(-errno, "%s: %s", path, strerror(errno));
	if (!S_ISREG(ret_stat->st_mode))
		return message_set(-EINVAL, "%s: not a regular file; move it out of the model", path);
	*ret_fd = take_fd(&fd);
	return 0;
}

int source_check(const struct source_file *file, int fd)
{
	struct stat st;

	if (fstat(fd, &st) == 0 && st.st_dev == file->device && st.st_ino == file->inode &&
	    (uint64_t)st.st_size == file->n_bytes &&
	    st.st_mtim.tv_sec == file->mtime.tv_sec && st.st_mtim.tv_nsec == file->mtime.tv_nsec)
		return 0;
	return message_set(-ESTALE, "%s: changed while it was packed; pack again when it is complete",
			   file->path);
}

int source_open(const struct source_file *file, int *ret_fd)
{
	_cleanup_(cleanup_fd) int fd = -1;
	struct stat st;
	int r = open_regular(file->path, &fd, &st);

	if (r == 0)
		r = source_check(file, fd);
	if (r)
		return r;
	*ret_fd = take_fd(&fd);
	return 0;
}

static bool name_is_utf8(const char *name)
{
	json_t *string = json_string(name);

	json_decref(string);
	return string != NULL;
}

/* Takes over both strings, also on failure. */
static int add_file(struct source *source, char *path, char *name)
{
	_cleanup_(cleanup_fd) int fd = -1;
	struct source_file *file;
	void *files = source->files;
	struct stat st;
	int r = -ENOMEM;

	if (path && name)
		r = memory_grow(&files, &source->capacity, source->n_files, source->n_files + 1,
				sizeof(source->files[0]));
	source->files = files;
	if (r) {
		memory_free(path);
		memory_free(name);
		return message_set(r, "not enough memory for the list of files");
	}
	file = &source->files[source->n_files++];
	*file = (struct source_file){ .name = name, .path = path, .kind = CONTAINER_FILE_VERBATIM };
	if (strlen(name) > CONTAINER_MAX_NAME)
		return message_set(-ENAMETOOLONG, "%.200s...: the name is too long", name);
	if (!name_is_utf8(name))
		return message_set(-EILSEQ, "%s: the file name is not UTF-8; rename it", path);
	r = open_regular(path, &fd, &st);
	if (r)
		return r;
	file->n_bytes = (uint64_t)st.st_size;
	file->device = st.st_dev;
	file->inode = st.st_ino;
	file->mtime = st.st_mtim;
	if (!range_add(source->n_bytes, file->n_bytes, &source->n_bytes))
		return message_set(-EOVERFLOW, "%s: the model has more than 2^64 bytes", path);
	if (!has_suffix(name, ".safetensors"))
		return 0;
	r = safetensors_init(&file->st, fd, file->n_bytes);
	if (r)
		return message_prefix(r, "%s", path);
	file->kind = CONTAINER_FILE_SAFETENSORS;
	source->n_tensors += file->st.n_tensors;
	return 0;
}

static void cleanup_dir(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

static int add_directory(struct source *source, const char *path, const char *prefix,
			 unsigned depth);

static int add_entry(struct source *source, const char *directory, const char *prefix,
		     const char *entry, unsigned depth)
{
	_cleanup_(cleanup_memory) char *path = path_join(directory, entry);
	_cleanup_(cleanup_memory) char *name = path_join(prefix, entry);
	struct stat st, target;

	if (!path || !name)
		return message_set(-ENOMEM, "not enough memory for the list of files");
	if (lstat(path, &st) < 0)
		return message_set(-errno, "%s: %s", path, strerror(errno));
	if (S_ISLNK(st.st_mode) && stat(path, &target) == 0 && S_ISDIR(target.st_mode))
		return message_set(-ELOOP, "%s: a symbolic link to a directory; remove it or copy the "
				   "directory", path);
	if (S_ISDIR(st.st_mode))
		return add_directory(source, path, name, depth + 1);
	return add_file(source, TAKE(path), TAKE(name));
}

static int add_directory(struct source *source, const char *path, const char *prefix,
			 unsigned depth)
{
	_cleanup_(cleanup_dir) DIR *dir = opendir(path);
	struct dirent *entry;

	if (!dir)
		return message_set(-errno, "%s: cannot open: %s", path, strerror(errno));
	if (depth > MAX_DEPTH)
		return message_set(-ELOOP, "%s: more than %d directories deep", path, MAX_DEPTH);
	for (;;) {
		int r;

		errno = 0;
		entry = readdir(dir);
		if (!entry)
			break;
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		r = add_entry(source, path, prefix, entry->d_name, depth);
		if (r)
			return r;
	}
	return errno ? message_set(-errno, "%s: cannot list: %s", path, strerror(errno)) : 0;
}

static int file_compare(const void *a, const void *b)
{
	const struct source_file *x = a, *y = b;

	return strcmp(x->name, y->name); /* bytewise as unsigned char, by the C standard */
}

static struct source_file *find_file(const struct source *source, const char *name)
{
	struct source_file key = { .name = (char *)(uintptr_t)name };

	return bsearch(&key, source->files, source->n_files, sizeof(key), file_compare);
}

struct index_walk {
	const struct source *source;
	const char *prefix; /* directory of the index, with its '/' */
	size_t prefix_bytes;
	struct source_file *last; /* neighbours are mostly in the same shard */
};

static int mark_shard(void *data, const char *tensor, const char *name)
{
	struct index_walk *walk = data;
	_cleanup_(cleanup_memory) char *full = NULL;

	if (walk->last && strcmp(walk->last->name + walk->prefix_bytes, name) == 0)
		return 0;
	full = memory_alloc(walk->prefix_bytes + strlen(name) + 1);
	if (!full)
		return message_set(-ENOMEM, "not enough memory");
	memcpy(full, walk->prefix, walk->prefix_bytes);
	memcpy(full + walk->prefix_bytes, name, strlen(name) + 1);
	walk->last = find_file(walk->source, full);
	if (!walk->last || walk->last->kind != CONTAINER_FILE_SAFETENSORS) {
		walk->last = NULL;
		return message_set(SAFETENSORS_E_CORRUPT,
				   "puts tensor %.200s in %.200s, which is not there; fetch that file",
				   tensor, name);
	}
	walk->last->is_model = true;
	return 0;
}

static int read_index(const struct source *source, const struct source_file *file)
{
	_cleanup_(cleanup_memory) char *text = NULL;
	_cleanup_(cleanup_fd) int fd = -1;
	const char *slash = strrchr(file->name, '/');
	struct index_walk walk = { .source = source,
				   .prefix = file->name,
				   .prefix_bytes = slash ? (size_t)(slash - file->name) + 1 : 0 };
	int r;

	if (file->n_bytes > MAX_INDEX_BYTES)
		return message_set(SAFETENSORS_E_CORRUPT, "%s: too long for an index", file->path);
	r = source_open(file, &fd);
	if (r)
		return r;
	text = memory_alloc((size_t)file->n_bytes + 1);
	if (!text)
		return message_set(-ENOMEM, "%s: not enough memory", file->path);
	r = io_read_at(fd, text, (size_t)file->n_bytes, 0);
	if (r)
		return message_set(r, "%s: cannot read: %s", file->path, strerror(-r));
	r = safetensors_index_each(text, (size_t)file->n_bytes, mark_shard, &walk);
	return r ? message_prefix(r, "%s", file->path) : 0;
}

static int mark_model_files(const struct source *source)
{
	for (size_t i = 0; i < source->n_files; i++) {
		struct source_file *file = &source->files[i];
		int r;

		if (strcmp(file->name, "model.safetensors") == 0)
			file->is_model = true;
		if (!has_suffix(file->name, INDEX_SUFFIX))
			continue;
		r = read_index(source, file);
		if (r)
			return r;
	}
	return 0;
}

static int scan(struct source *source, const char *path)
{
	const char *base;
	struct stat st;
	int r;

	if (stat(path, &st) < 0)
		return message_set(-errno, "%s: %s", path, strerror(errno));
	if (!S_ISDIR(st.st_mode)) {
		base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
		if (S_ISREG(st.st_mode) && !has_suffix(base, ".safetensors"))
			return message_set(-EINVAL,
					   "%s: not a directory or a .safetensors file: name the model's "
					   "directory", path);
		return add_file(source, memory_strdup(path), memory_strdup(base));
	}
	r = add_directory(source, path, "", 0);
	if (r)
		return r;
	qsort(source->files, source->n_files, sizeof(source->files[0]), file_compare);
	if (source->n_tensors == 0)
		return message_set(-EINVAL,
				   "%s: holds no .safetensors file with tensors: name the directory of a "
				   "model", path);
	return mark_model_files(source);
}

int source_init(struct source *ret_source, const char *path)
{
	struct source source = { 0 };
	int r = scan(&source, path);

	if (r) {
		source_deinit(&source);
		return r;
	}
	*ret_source = source;
	return 0;
}

void source_deinit(struct source *source)
{
	for (size_t i = 0; i < source->n_files; i++) {
		safetensors_deinit(&source->files[i].st);
		memory_free(source->files[i].name);
		memory_free(source->files[i].path);
	}
	source->files = memory_free(source->files);
	source->n_files = 0;
}
